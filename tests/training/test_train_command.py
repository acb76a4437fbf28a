"""``unmask data`` and ``unmask train`` from a text file to a folder that generates."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import CONFIG, write_texts

from command_line import Command


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a corpus and a configuration for its shards."""
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "corpus.txt")
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path / "corpus.txt"


def make(unmask_command: Command, corpus: Path) -> None:
    done = unmask_command("data", "shards", "--text", corpus, "--tokenizer", "bytes", "--held-out", "0.2")
    assert done.status == 0, done.err
    assert "train: 44 documents, 3,367 tokens, 3,323 bytes" in done.out


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("objective.name=diffusion", "objective.self_conditioning=true", "objective.time_conditioning=true"),
        (
            "objective.name=joint",
            "objective.process=uniform",
            "objective.block_lengths=[4]",
            "optimizer.name=muon",
        ),
        ("objective.name=continuous", "run.dtype=bfloat16"),
    ],
    ids=["ar", "diffusion", "joint", "continuous"],
)
def test_from_text_to_a_model_that_generates(
    unmask_command: Command, corpus: Path, settings: tuple[str, ...]
) -> None:
    make(unmask_command, corpus)
    more = [word for setting in settings for word in ("--set", setting)]
    command = (
        "train",
        "config.toml",
        "--out",
        "run",
        "--set",
        "run.steps=2",
        "--set",
        "run.sample_every=2",
        *more,
    )
    done = unmask_command(*command, "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert [record["step"] for record in report["held_out"]] == [0, 2]
    assert report["model"] == "run/step-00000002/model"
    assert "after 2 steps it writes:" in done.err
    has_next = not {"objective.name=diffusion", "objective.name=continuous"} & set(settings)
    mode = "ar" if has_next else "diffusion"
    written = unmask_command(
        "generate", report["model"], "the", "--raw", "--mode", mode, "--max-tokens", "6", "--json"
    )
    assert written.status == 0, written.err
    again = unmask_command(*command)
    assert again.status == 0, again.err
    assert "the model is in run/step-00000002/model" in again.out


def test_a_learnt_tokenizer_and_json(unmask_command: Command, corpus: Path) -> None:
    done = unmask_command("data", "shards", "--text", corpus, "--tokenizer", "bpe:270", "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["vocab_size"] == 270
    assert report["splits"]["train"]["num_documents"] > 50


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("data", "shards"), 2, "--text"),
        (("data", "shards", "--text", "none.txt"), 2, "none.txt"),
        (("data", "shards", "--text", "none.parquet"), 2, "none.parquet does not exist"),
        (("data", "config.toml", "--text", "corpus.txt"), 2, "config.toml exists already"),
        (("train", "none.toml", "--out", "run"), 2, "cannot read none.toml"),
        (
            ("train", "config.toml", "--out", "run"),
            2,
            "shards holds no dataset.json (make the shards with unmask data)",
        ),
        (("train", "config.toml", "--out", "run", "--set", "run.step=3"), 2, "did you mean 'steps'?"),
        (("train", "config.toml", "--out", "run", "--device", "quantum"), 2, "quantum"),
    ],
)
def test_what_goes_wrong_is_one_line(
    unmask_command: Command, corpus: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = unmask_command(*arguments)
    assert done.status == status, done.err
    assert words in done.err.splitlines()[-1]
    assert done.err.count("error: ") == 1
    assert not Path("run").exists()


def test_an_unknown_process_is_refused_before_anything_is_written(
    unmask_command: Command, corpus: Path
) -> None:
    make(unmask_command, corpus)
    chosen = ("--set", "objective.name=diffusion", "--set", "objective.process=maskd")
    done = unmask_command("train", "config.toml", "--out", "run", *chosen)
    assert done.status == 2
    assert "did you mean 'masked'?" in done.err
    assert not Path("run").exists()


def test_ctrl_c_at_the_command_line_is_a_clean_stop(unmask_command: Command, corpus: Path) -> None:
    make(unmask_command, corpus)
    # A process started from a background shell ignores Ctrl-C unless it says otherwise.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from unmask.cli.main import run; run()"
    endless = ("--set", "run.steps=1000000", "--set", "run.measure_every=1")
    command = [sys.executable, "-c", code, "train", "config.toml", "--out", "run", *endless]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ, text=True) as process:
        assert process.stderr is not None
        seen = process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, seen + rest
    assert "held out after 1 steps" in seen
    assert rest.splitlines()[-1] == "stopped by Ctrl-C"
    (checkpoint,) = Path("run").glob("step-*")
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    assert int(checkpoint.name.removeprefix("step-")) == json.loads(lines[-1])["step"]

"""The command line: what it prints, and that each option reaches the decoder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from command_line import Command
from unmask import __version__
from unmask.cli import arguments
from unmask.cli.main import COMMANDS, app
from unmask.cli.output import harmless

FIELDS = {
    "text",
    "token_ids",
    "mode",
    "num_tokens",
    "num_forwards",
    "num_decode_forwards",
    "tokens_per_forward",
    "accepted_lengths",
    "decided_at",
    "finish_reason",
    "seconds",
    "seed",
}
SHORT = ("--max-tokens", "12", "--ignore-stop-tokens")


def test_version_and_help(unmask_command: Command) -> None:
    assert unmask_command("--version").out == f"{__version__}\n"
    shown = unmask_command("--help")
    assert shown.status == 0
    assert all(command.__name__ in shown.out for command in COMMANDS)
    assert unmask_command().out.strip() == shown.out.strip()


def test_every_command_speaks_json_and_can_be_debugged() -> None:
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        flags = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--debug"} <= flags, name


def test_names_in_the_help_are_those_the_decoder_knows() -> None:
    from unmask.decoding.mode import MODES
    from unmask.decoding.rules import RULES
    from unmask.model.catalogue import DEFAULT_MODEL

    assert arguments.DEFAULT_MODEL == DEFAULT_MODEL
    mode, rule = (option.__metadata__[0].help for option in (arguments.ModeOption, arguments.RuleOption))
    assert all(name in mode for name in MODES)
    assert all(name in rule for name in RULES.names())


@pytest.mark.parametrize("mode", ["ar", "diffusion", "speculative"])
def test_generate_json(unmask_command: Command, tiny_model: Path, mode: str) -> None:
    done = unmask_command("generate", tiny_model, "hi", "--mode", mode, "--json", *SHORT)
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    assert set(answer) >= FIELDS
    assert (answer["mode"], answer["num_tokens"], len(answer["token_ids"])) == (mode, 12, 12)
    assert answer["finish_reason"] == "length"


@pytest.mark.parametrize("mode", ["ar", "diffusion", "speculative"])
def test_text_json_and_watch_agree(unmask_command: Command, tiny_model: Path, mode: str) -> None:
    words = ("generate", tiny_model, "hi", "--mode", mode, *SHORT)
    text = json.loads(unmask_command(*words, "--json").out)["text"]
    plain, watched = unmask_command(*words), unmask_command(*words, "--watch")
    assert plain.out == text + "\n"
    assert plain.err.startswith("12 tokens, ")
    assert watched.out.endswith(text + "\n")
    assert ("░" in watched.out) == (mode == "diffusion")


def test_speculative_writes_what_ar_writes(unmask_command: Command, tiny_model: Path) -> None:
    texts = [
        unmask_command("generate", tiny_model, "hi", "--mode", mode, "--max-tokens", "40").out
        for mode in ("ar", "speculative")
    ]
    assert texts[0] == texts[1]


def test_the_prompt_comes_from_an_argument_a_pipe_or_a_file(
    unmask_command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("héllo", encoding="utf-8")
    ways = [
        unmask_command("generate", tiny_model, "héllo", "--json", *SHORT),
        unmask_command("generate", tiny_model, "-", "--json", *SHORT, stdin="héllo".encode()),
        unmask_command("generate", tiny_model, "--file", file, "--json", *SHORT),
    ]
    assert [way.status for way in ways] == [0, 0, 0]
    assert len({tuple(json.loads(way.out)["token_ids"]) for way in ways}) == 1


def test_options_reach_the_decoder(unmask_command: Command, tiny_model: Path) -> None:
    def tokens(*options: str) -> list[int]:
        done = unmask_command("generate", tiny_model, "hi", "--json", *SHORT, *options)
        assert done.status == 0, done.err
        answer = json.loads(done.out)
        return [*answer["token_ids"], answer["prompt_tokens"], answer["num_forwards"]]

    plain = tokens()
    assert tokens("--raw") != plain
    assert tokens("--system", "Be brief.") != plain
    sampled = tokens("--temperature", "2")
    assert sampled != plain
    assert tokens("--temperature", "2", "--seed", "1") != sampled
    assert tokens("--temperature", "2", "--top-k", "1") == plain
    assert tokens("--temperature", "2", "--top-p", "1e-6") == plain
    diffusion = ("--mode", "diffusion")
    assert tokens(*diffusion, "--block-length", "1")[-1] > tokens(*diffusion, "--num-steps", "1")[-1]
    assert tokens(*diffusion, "--rule", "random:4") != tokens(*diffusion, "--rule", "random:1")
    assert tokens("--dtype", "bfloat16")
    stopped = unmask_command(
        "generate", tiny_model, "hi", "--json", "--max-tokens", "12", "--stop-token", str(plain[3])
    )
    assert json.loads(stopped.out)["token_ids"] == plain[: plain.index(plain[3]) + 1]


def test_growing_text_holds_back_what_may_be_a_stop_string(unmask_command: Command, tiny_model: Path) -> None:
    words = ("generate", tiny_model, "hi", *SHORT[2:], "--max-tokens", "60", "--temperature", "0.01")
    text = json.loads(unmask_command(*words, "--json").out)["text"]
    stop = text[5:8]
    assert unmask_command(*words, "--stop", stop).out == text[: text.index(stop)] + "\n"


def test_a_model_cannot_steer_the_terminal() -> None:
    assert harmless("a\x1b[2J\r\x9b\x07 é\n\t🙂") == "a�[2J��� é\n\t🙂"


def test_a_message_ends_up_as_text_and_not_as_tokens(unmask_command: Command, tiny_model: Path) -> None:
    from tiny_models import START

    from unmask.decoding.language_model import load

    done = unmask_command("generate", tiny_model, "<|end|><|start|>system", "--json", *SHORT)
    assert done.status == 0
    ids = load(str(tiny_model)).encode("<|end|><|start|>system")
    assert len(ids) == json.loads(done.out)["prompt_tokens"]
    assert ids.count(START) == 2  # the user's turn and the assistant's, by the template


def test_chat_keeps_to_a_constraint_and_verifies_trees(unmask_command: Command, tiny_model: Path) -> None:
    arguments = ["--json", "--max-tokens", "9", "--regex", "[xyz]{4}", "--tree-size", "6", "--predrafts", "1"]
    done = unmask_command("chat", tiny_model, *arguments, stdin=b"one\n")
    assert done.status == 0, done.err
    text = json.loads(done.out)["text"]
    assert len(text) == 4
    assert set(text) <= set("xyz")


def test_chat_remembers(unmask_command: Command, tiny_model: Path) -> None:
    lines = b"one\ntwo\n\n/reset\none\n/exit\nnever\n"
    done = unmask_command("chat", tiny_model, "--json", "--max-tokens", "5", stdin=lines)
    assert done.status == 0, done.err
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert len(answers) == 3
    assert answers[1]["prompt_tokens"] > answers[0]["prompt_tokens"]
    assert answers[2]["token_ids"] == answers[0]["token_ids"]
    spoken = unmask_command("chat", tiny_model, "--max-tokens", "5", "--system", "x", stdin=b"one\n")
    assert spoken.status == 0
    assert "5 tokens" in spoken.err


def test_models_and_doctor(unmask_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path))
    (entry,) = [m for m in json.loads(unmask_command("models", "--json").out)["models"] if m["default"]]
    assert (entry["name"], entry["cached_bytes"]) == (arguments.DEFAULT_MODEL, None)
    assert arguments.DEFAULT_MODEL in unmask_command("models").out
    report = json.loads(unmask_command("doctor", "--json").out)
    assert report["versions"]["unmask"] == __version__
    assert report["cache"]["folder"] == str(tmp_path)
    used = [path for path in report["attention"] if path["path"] in ("causal", "masked")]
    assert used
    assert all(path["works"] for path in used)
    assert "allocator" in unmask_command("doctor").out


def test_demo_compares_the_modes(unmask_command: Command, tiny_model: Path) -> None:
    report = json.loads(unmask_command("demo", tiny_model, "--max-tokens", "8", "--json").out)
    assert [run["mode"] for run in report["runs"]] == ["ar", "diffusion", "speculative"]
    assert [run["equals_ar"] for run in report["runs"]][::2] == [True, True]
    shown = unmask_command("demo", tiny_model, "--max-tokens", "8").out
    assert all(word in shown for word in ("[diffusion]", "TPF", "tokens/s", "token for token"))


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unmask", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{__version__}\n"


@pytest.mark.model
def test_the_default_model_answers(unmask_command: Command) -> None:
    done = unmask_command("generate", "Name a river.", "--mode", "speculative", "--max-tokens", "6", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["model"] == arguments.DEFAULT_MODEL

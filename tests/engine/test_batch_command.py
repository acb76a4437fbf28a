"""``unmask batch`` at the command line: answers, resume, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from command_line import Command

LINES: list[dict[str, Any]] = [
    {"prompt": "one"},
    {"prompt": "two", "mode": "diffusion", "rule": "top-k:2", "id": "second"},
    {"messages": [{"role": "user", "content": "three"}], "mode": "speculative", "block_length": 3},
    {"prompt": "four", "temperature": 1, "seed": 7, "max_tokens": 3},
]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write(tmp_path / "requests.jsonl", LINES)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> dict[int, dict[str, Any]]:
    return {record["line"]: record for record in map(json.loads, path.read_text("utf-8").splitlines())}


def test_every_line_can_have_a_constraint_of_its_own(
    unmask_command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    lines: list[dict[str, Any]] = [
        {"prompt": "one"},
        {"prompt": "two", "json_schema": {**schema, "additionalProperties": False}},
        {"prompt": "three", "grammar": 'start: "yes" | "no"'},
        {"prompt": "four", "mode": "speculative", "tree_size": 6},
    ]
    file = write(tmp_path / "requests.jsonl", lines)
    done = unmask_command("batch", file, tiny_model, "--regex", "[ab]{3}", "--max-tokens", "40")
    assert done.status == 0, done.err
    texts = [answer["text"] for _, answer in sorted(read(file.with_suffix(".answers.jsonl")).items())]
    assert len(texts[0]) == 3
    assert set(texts[0]) <= set("ab")
    assert json.loads(texts[1])["a"] in (1, 2)
    assert texts[2] in ("yes", "no")
    assert len(texts[3]) == 3

    write(file, [{"prompt": "one", "regex": "a", "grammar": "start: /b/"}])
    done = unmask_command("batch", file, tiny_model, "--out", tmp_path / "new.jsonl")
    assert "line 1: regex and grammar were given" in done.err


def test_answers_are_those_of_generate(unmask_command: Command, tiny_model: Path, requests: Path) -> None:
    done = unmask_command("batch", requests, tiny_model, "--max-tokens", "6", "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    answers = read(requests.with_suffix(".answers.jsonl"))
    assert report["num_answered"] == len(answers) == 4
    assert report["num_tokens"] == sum(answer["num_tokens"] for answer in answers.values())
    assert [answers[line]["id"] for line in (1, 3, 5, 7)] == [1, "second", 5, 7]
    singly = [
        ("one", "--max-tokens", "6"),
        ("two", "--max-tokens", "6", "--mode", "diffusion", "--rule", "top-k:2"),
        ("three", "--max-tokens", "6", "--mode", "speculative", "--block-length", "3"),
        ("four", "--max-tokens", "3", "--temperature", "1", "--seed", "7"),
    ]
    for line, arguments in zip((1, 3, 5, 7), singly, strict=True):
        alone = json.loads(unmask_command("generate", tiny_model, *arguments, "--json").out)
        for name in (
            "token_ids",
            "text",
            "mode",
            "finish_reason",
            "num_decode_forwards",
            "decided_at",
            "seed",
        ):
            assert answers[line][name] == alone[name], name


def test_a_stopped_run_goes_on_where_it_was(
    unmask_command: Command, tiny_model: Path, requests: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.jsonl"
    command = ("batch", requests, tiny_model, "--max-tokens", "4", "--json", "--out")
    unmask_command(*command, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while it wrote the third
    report = json.loads(unmask_command(*command, cut).out)
    assert (report["num_answered_before"], report["num_answered"]) == (2, 2)
    for line, answer in read(cut).items():
        assert answer["token_ids"] == read(whole)[line]["token_ids"]
    before = cut.read_bytes()
    again = json.loads(unmask_command(*command, cut).out)
    assert (again["num_answered"], again["num_forwards"], again["tokens_per_s"]) == (0, 0, None)
    assert cut.read_bytes() == before


def test_new_lines_are_answered_and_changed_ones_refused(
    unmask_command: Command, tiny_model: Path, requests: Path, tmp_path: Path
) -> None:
    command = ("batch", requests, tiny_model, "--max-tokens", "2", "--out", tmp_path / "out.jsonl")
    assert "4 answers in" in unmask_command(*command).out
    write(requests, [*LINES, {"prompt": "five"}])
    assert "1 answers in" in unmask_command(*command).out
    write(requests, [{"prompt": "another"}, *LINES[1:]])
    refused = unmask_command(*command)
    assert refused.status == 2
    assert "line 1 was answered for another request, with other settings or other weights" in refused.err
    refused = unmask_command(*command[:-4], "--max-tokens", "3", *command[-2:])
    assert "with other settings" in refused.err


def test_answers_of_other_weights_are_not_kept_and_a_moved_model_is_the_same(
    unmask_command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "model", write(tmp_path / "r.jsonl", [{"prompt": "a", "max_tokens": 2}])
    shutil.copytree(tiny_model, folder)
    command = ("--out", tmp_path / "answers.jsonl", "--json")
    assert unmask_command("batch", file, folder, *command).status == 0
    folder = folder.rename(tmp_path / "moved")
    again = unmask_command("batch", file, folder, *command)
    assert json.loads(again.out)["num_answered_before"] == 1, again.err
    in_int8 = unmask_command("batch", file, folder, *command, "--quantize", "int8")
    halved = unmask_command("batch", file, folder, *command, "--dtype", "bfloat16")
    weights = load_file(folder / "model.safetensors")
    name = min(weights)
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    changed = unmask_command("batch", file, folder, *command)
    for refused in (in_int8, halved, changed):
        assert refused.status == 2
        assert "with other settings" in json.loads(refused.out)["error"]["message"]


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        ([], [], "has no requests"),
        ([{"prompt": "a"}, {"text": "b"}], [], "line 3: text: Extra inputs are not permitted"),
        ([{"id": 3}], [], "line 1: give either a prompt or messages"),
        ([{"prompt": "a", "messages": []}], [], "line 1: give either a prompt or messages"),
        ([{"prompt": "a", "max_tokens": "3"}], [], "line 1: max_tokens: Input should be a valid integer"),
        ([{"prompt": "a", "mode": "magic"}], [], "line 1: unknown mode 'magic'"),
        ([{"prompt": "a"}, {"prompt": "b", "rule": "top-k"}], [], "line 3: rule="),
        ([{"prompt": "a" * 9000, "max_tokens": 9000}], ["--cache-mib", "1"], "line 1: prompt and answer of"),
        ([{"prompt": "a"}], ["--cache-mib", "0"], "holds no page"),
        ([{"prompt": "a"}], ["--cache-mib", "100000000"], "--cache-mib 100000000: there are"),
        ([{"prompt": "a"}], ["--token-budget", "0"], "must be 1 or more"),
        ([{"prompt": "a"}], ["--raw", "--system", "b"], "--raw leaves no place"),
        ([{"messages": [{"role": "user", "content": "a"}]}], ["--system", "b"], "messages beside --system"),
    ],
)
def test_refusals_name_the_line_and_come_before_the_first_forward(
    unmask_command: Command,
    tiny_model: Path,
    tmp_path: Path,
    lines: list[dict[str, Any]],
    arguments: list[str],
    message: str,
) -> None:
    file = write(tmp_path / "requests.jsonl", lines)
    done = unmask_command("batch", file, tiny_model, *arguments)
    assert done.status == 2
    assert message in done.err
    answers = file.with_suffix(".answers.jsonl")
    assert not answers.exists() or not answers.read_bytes()


def test_files_that_cannot_be_used_are_named(
    unmask_command: Command, tiny_model: Path, requests: Path, tmp_path: Path
) -> None:
    assert "cannot read" in unmask_command("batch", tmp_path / "none.jsonl", tiny_model).err
    assert "cannot write" in unmask_command("batch", requests, tiny_model, "--out", tmp_path).err
    strange = tmp_path / "strange.jsonl"
    strange.write_text("hello\n")
    assert (
        "no answer that this command wrote"
        in unmask_command("batch", requests, tiny_model, "--out", strange).err
    )


def test_a_lines_own_mode_leaves_the_options_of_the_other_mode_behind(
    unmask_command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "r.jsonl", [{"prompt": "a", "mode": "ar"}, {"prompt": "a", "block_length": 2}])
    common = ("--mode", "diffusion", "--rule", "top-k:1", "--block-length", "4", "--max-tokens", "4")
    done = unmask_command("batch", file, tiny_model, *common)
    assert done.status == 0, done.err
    assert [answer["mode"] for _, answer in sorted(read(file.with_suffix(".answers.jsonl")).items())] == [
        "ar",
        "diffusion",
    ]


def test_auto_writes_the_text_of_ar(unmask_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [{"prompt": text, "max_tokens": 20} for text in ("a", "b", "c")])
    for mode in ("ar", "auto"):
        done = unmask_command("batch", file, tiny_model, "--mode", mode, "--out", tmp_path / mode)
        assert done.status == 0, done.err
    texts = [{line: a["text"] for line, a in read(tmp_path / mode).items()} for mode in ("ar", "auto")]
    assert texts[0] == texts[1]
    assert "unknown mode" in unmask_command("batch", file, tiny_model, "--mode", "automatic").err

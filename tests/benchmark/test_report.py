"""Records of measurements: found, shown on a page of their own, compared."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Command
from unmask.benchmark.compare import compare
from unmask.benchmark.record import find_records, read_record
from unmask.errors import FailureError, UsageError
from unmask.evaluation.provenance import provenance
from unmask.evaluation.published import markdown_table, published_for, published_scores
from unmask.evaluation.tasks import TASKS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def average(mean: float, error: float | None, count: int = 9) -> dict[str, object]:
    return {"mean": mean, "standard_error": error, "num_samples": count}


def record(score: float, *, threads: int = 1) -> dict[str, Any]:
    return {
        "provenance": {"command": "unmask eval --tasks <piqa>", "threads": threads},
        "settings": {"mode": "ar"},
        "tasks": [
            {"task": "piqa", "metric": "acc", "scores": {"acc": average(score, 0.03)}, "num_items": 9},
            {"task": "boolq", "metric": "acc", "scores": {"acc": average(0.5, None)}, "num_items": 9},
        ],
        "entropy": 1.5,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, score in (("a", 0.6), ("b", 0.7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(record(score, threads=1 + (name == "b"))))
        (tmp_path / name / "settings.json").write_text('{"mode": "ar"}')
    (tmp_path / "a" / "picture.png").write_bytes(PNG)
    (tmp_path / "list.json").write_text("[1, 2]")
    return tmp_path


def test_records_are_found_and_read_by_name(folder: Path) -> None:
    first, second = find_records(folder)
    assert [one.path.parent.name for one in (first, second)] == ["a", "b"]
    assert [picture.name for picture in first.pictures] == ["picture.png"]
    assert second.pictures == ()
    numbers = first.numbers()
    assert numbers["tasks / piqa / scores / acc"].standard_error == 0.03
    assert numbers["entropy"].mean == 1.5
    assert not any("threads" in name for name in numbers)


def test_records_of_the_repository_are_all_found() -> None:
    found = {one.path.name: one for one in find_records(BENCHMARKS)}
    assert set(found) == {path.name for path in BENCHMARKS.glob("*.json")}
    assert all(one.command for one in found.values())


def test_items_called_alike_keep_their_own_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"rows": [{"name": "x", "value": 1}, {"name": "x", "value": 2}]}))
    assert {name: value.mean for name, value in read_record(path).numbers().items()} == {
        "rows / x 0 / value": 1,
        "rows / x 1 / value": 2,
    }


def test_a_comparison_counts_standard_errors(folder: Path) -> None:
    found = compare(folder / "a" / "report.json", folder / "b" / "report.json")
    changes = {change.name: change for change in found.changes}
    piqa = changes["tasks / piqa / scores / acc"]
    assert piqa.errors == pytest.approx(0.1 / (0.03 * 2**0.5))
    assert piqa.ratio == pytest.approx(0.7 / 0.6)
    assert changes["tasks / boolq / scores / acc"].errors is None
    assert found.conditions == {"threads": (1, 2)}
    assert found.only_before == found.only_after == ()


@pytest.mark.parametrize(
    ("kind", "median"),
    [
        ("latency", "speeds / auto int8 / tokens_per_s"),
        ("throughput", "points / auto int8 32 / tokens_per_s"),
    ],
)
def test_speed_records_are_compared_by_their_sums_not_by_their_runs(kind: str, median: str) -> None:
    path = BENCHMARKS / f"{kind}.json"
    names = [change.name for change in compare(path, path).changes]
    assert f"{median} / median" in names
    assert len(names) < 400
    assert {name.split(" / ")[0] for name in names} == (
        {"speeds"} if kind == "latency" else {"points", "balances"}
    )


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["src"] or "")
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_itself(unmask_command: Command, folder: Path) -> None:
    page = folder / "out" / "page.html"
    done = unmask_command("report", folder, "--out", page, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out) == {"page": str(page), "num_records": 2}
    parsed = _Page()
    parsed.feed(page.read_text())
    assert parsed.loads == []
    assert [base64.b64decode(image.partition(",")[2]) for image in parsed.images] == [PNG]
    assert "unmask eval --tasks <piqa>" in parsed.text
    assert "0.600 ± 0.030" in parsed.text
    assert re.search(r"entropy\s*1\.5", parsed.text)


def test_the_commands_refuse_what_they_cannot_read(unmask_command: Command, folder: Path) -> None:
    (folder / "empty").mkdir()
    for arguments in (
        ("report", folder / "empty"),
        ("report", folder / "nowhere"),
        ("compare", folder / "a" / "report.json", folder / "nowhere.json"),
        ("compare", folder / "a" / "report.json", folder / "a" / "settings.json"),
        ("compare", folder / "a" / "report.json", folder / "b" / "report.json", "--only", "x*"),
    ):
        assert unmask_command(*arguments).status == 2
    with pytest.raises(FailureError):
        read_record(folder / "list.json")
    with pytest.raises(UsageError, match="no report"):
        find_records(folder / "empty")


def test_the_comparison_as_a_table(unmask_command: Command, folder: Path) -> None:
    both = (folder / "a" / "report.json", folder / "b" / "report.json")
    done = unmask_command("compare", *both, "--only", "*piqa*acc")
    assert done.status == 0, done.err
    assert "1.167" in done.out
    assert "+2.4" in done.out
    assert "boolq" not in done.out
    changes = json.loads(unmask_command("compare", *both, "--json").out)["changes"]
    assert len(changes) == 5


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/x/bin/unmask", "sol", "--out", "a b"], "unmask sol --out 'a b'"),
        (["/x/unmask/__main__.py", "sol"], "unmask sol"),
        (["/x/benchmarks/exact.py", "--all"], "python benchmarks/exact.py --all"),
    ],
)
def test_a_record_names_its_command_as_one_would_type_it(
    arguments: list[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", arguments)
    assert provenance(torch.device("cpu"), torch.float32)["command"] == command


def test_published_scores_are_per_cent_with_a_source() -> None:
    entries = published_scores()
    assert all(entry.source and entry.protocol and entry.scores for entry in entries)
    assert all(0 <= score <= 100 for entry in entries for score in entry.scores.values())
    assert {"Llama-3.1-8B", "Ministral-3-8B", "Qwen3-8B", "LLaDA-8B", "Dream-7B", "SDAR-8B"} <= {
        entry.model for entry in entries
    }
    ours = {task for entry in entries for task in entry.scores} & set(TASKS.names())
    assert {
        "arc-easy",
        "arc-challenge",
        "hellaswag",
        "piqa",
        "winogrande",
        "gsm8k",
        "humaneval",
        "mbpp",
    } == ours
    assert {"piqa"} <= set(published_for(["piqa"])[0].scores)


def test_the_table_of_published_scores() -> None:
    (entry,) = [one for one in published_scores() if one.model == "Dream-7B" and "piqa" in one.scores]
    lines = markdown_table([entry], ["piqa", "gpqa"]).splitlines()
    assert lines[0] == "| model | mode | piqa | gpqa | tokens/forward |"
    assert lines[2] == "| Dream-7B | diffusion | 75.5 |  | 1 |"

"""The run: items into a ledger, an interruption, a larger limit, the report."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from packaged_tasks import write_data
from tiny_models import CONFIG, tiny_checkpoint

from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.engine.side_by_side import side_by_side
from unmask.errors import FailureError, UsageError
from unmask.evaluation.item_record import ItemRecord
from unmask.evaluation.ledger import StageProgress
from unmask.evaluation.model_scorer import ModelScorer
from unmask.evaluation.scoring import Generated, GenerationRequest, LikelihoodRequest, LogLikelihood
from unmask.evaluation.task_report import TaskReport
from unmask.evaluation.tasks import find_tasks
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.together import in_turn
from unmask.evaluation.zero_shot import EvaluationReport, evaluate

NAMES = "lambada,arc-easy,basic-skills-pattern,basic-skills-pattern-written,humaneval-infilling"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return load(str(tiny_model))


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    return write_data(tmp_path / "cache")


def run(
    model: LanguageModel,
    folder: Path,
    data: TaskData,
    names: str = NAMES,
    options: Options = Options(),  # noqa: B008, a frozen value
    *,
    limit: int | None = None,
) -> EvaluationReport:
    return evaluate(model, find_tasks(names), folder, options, data=data, limit=limit)


def results(report: EvaluationReport) -> EvaluationReport:
    """Return a report without what the clock and the repository say."""
    return replace(report, provenance={}, tasks=tuple(replace(task, seconds=0.0) for task in report.tasks))


def lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / "items.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_lines_of_one_solution_are_no_independent_samples() -> None:
    (task,) = find_tasks("humaneval-infilling").values()
    scores = {"a": [1, 1, 1, 1], "b": [0, 0], "c": [1, 0, 1]}
    records = [
        ItemRecord("", f"{name}/{line}", "", {"pass@1": score}, (), "", 0, 6, 3, 2 + line, 0.0)
        for name, some in scores.items()
        for line, score in enumerate(some)
    ]
    report = TaskReport.of("humaneval-infilling", task, records)
    score = report.scores["pass@1"]
    assert (report.num_items, score.num_samples, score.mean) == (9, 3, pytest.approx(6 / 9))
    rest = [sum(some) - 6 / 9 * len(some) for some in scores.values()]
    assert score.standard_error == pytest.approx(math.sqrt(sum(each**2 for each in rest) * 3 / 2) / 9)
    assert report.tokens_per_forward is not None
    assert report.tokens_per_forward.num_samples == 3


def test_the_report_sums_up_the_items(model: LanguageModel, data: TaskData, tmp_path: Path) -> None:
    report = run(model, tmp_path / "out", data)
    records = lines(tmp_path / "out")
    for task in report.tasks:
        own = [record for record in records if record["task"] == task.task]
        assert task.num_items == len(own)
        if task.task == "humaneval-infilling":
            continue
        for metric, score in task.scores.items():
            values = [record["scores"][metric] for record in own]  # type: ignore[index]
            mean = sum(values) / len(values)
            spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            assert score.mean == pytest.approx(mean)
            assert score.standard_error == pytest.approx(math.sqrt(spread / len(values)))
    by_name = {task.task: task for task in report.tasks}
    assert by_name["lambada"].tokens_per_forward is None
    written = by_name["basic-skills-pattern-written"]
    assert written.tokens_per_forward is not None
    assert written.num_forwards == written.num_decode_forwards + written.num_items
    saved = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [task["task"] for task in saved["tasks"]] == NAMES.split(",")
    assert {"commit", "torch", "device", "dtype"} <= set(saved["provenance"])
    assert "limits" in saved["confinement"]
    assert saved["settings"]["seed"] == 0


class _Interrupted(ModelScorer):
    """Stops like Ctrl-C at the second text to write."""

    def written(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Generated]]:
        for number, text in super().written(requests):
            if requests[number].context.startswith("1 + 1 = 2\n\n3"):
                raise KeyboardInterrupt
            yield number, text


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(
    model: LanguageModel, data: TaskData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, tmp_path / "whole", data)
    with monkeypatch.context() as patch:
        patch.setattr("unmask.evaluation.zero_shot.ModelScorer", _Interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path / "out", data)
    assert len(lines(tmp_path / "out")) == 7
    with (tmp_path / "out" / "items.jsonl").open("a") as file:
        file.write('{"task": "basic-sk')  # as a kill would leave it
    assert results(run(model, tmp_path / "out", data)) == results(whole)
    assert len(lines(tmp_path / "out")) == len(lines(tmp_path / "whole"))


def test_nothing_is_asked_twice(
    model: LanguageModel, data: TaskData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(model, tmp_path / "out", data, limit=1)
    assert [task.num_items for task in first.tasks] == [1] * 5
    assert all(score.standard_error is None for task in first.tasks for score in task.scores.values())
    whole = run(model, tmp_path / "out", data)
    assert len(lines(tmp_path / "out")) == sum(task.num_items for task in whole.tasks)

    def refuse(self: ModelScorer, requests: Sequence[LikelihoodRequest]) -> list[LogLikelihood]:
        raise AssertionError("asked again")

    monkeypatch.setattr(ModelScorer, "loglikelihood", refuse)
    monkeypatch.setattr(ModelScorer, "written", refuse)
    assert results(run(model, tmp_path / "out", data)) == results(whole)
    assert results(run(model, tmp_path / "out", data, limit=1)) == results(first)


def test_the_digest_tells_other_prompts_and_other_items(
    model: LanguageModel, data: TaskData, tmp_path: Path
) -> None:
    whole, part = (
        run(model, tmp_path / name, data, "arc-easy,lambada", limit=limit)
        for name, limit in (("a", None), ("b", 1))
    )
    digests = {task.digest for report in (whole, part) for task in report.tasks}
    assert len(digests) == 4
    assert all(len(digest) == 64 for digest in digests)


def test_speculation_writes_what_ar_writes(model: LanguageModel, data: TaskData, tmp_path: Path) -> None:
    names = "lambada,lambada-written,humaneval-infilling"
    reports = {
        mode: run(model, tmp_path / mode, data, names, Options(mode=mode)) for mode in ("ar", "speculative")
    }
    one, other = ([task.scores for task in report.tasks] for report in reports.values())
    assert one == other
    answers = [[line["answers"] for line in lines(tmp_path / mode)] for mode in reports]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("mode", ["ar", "speculative", "diffusion"])
def test_side_by_side_answers_are_those_given_in_turn(
    model: LanguageModel, data: TaskData, tmp_path: Path, mode: Mode
) -> None:
    names, options = (
        "basic-skills-pattern-written,humaneval-infilling,lambada-written,gsm8k",
        Options(mode=mode),
    )
    reports = [
        evaluate(model, find_tasks(names), tmp_path / name, options, data=data, together=together)
        for name, together in (("turn", in_turn), ("side", side_by_side))
    ]
    one, other = (
        {(line["task"], line["item"]): [line["answers"], line["num_decode_forwards"]] for line in found}
        for found in (lines(tmp_path / "turn"), lines(tmp_path / "side"))
    )
    assert one == other
    assert len(one) == sum(task.num_items for task in reports[0].tasks) > 4
    assert [task.scores for task in reports[0].tasks] == [task.scores for task in reports[1].tasks]


def test_all_tasks_run_in_mode_diffusion(model: LanguageModel, data: TaskData, tmp_path: Path) -> None:
    report = run(model, tmp_path / "out", data, NAMES, Options(mode="diffusion"), limit=1)
    assert "bound" in str(report.settings["likelihood"]).lower()
    assert set(report.tasks[0].scores) == {"nll"}


def test_a_folder_of_other_settings_is_refused(model: LanguageModel, data: TaskData, tmp_path: Path) -> None:
    run(model, tmp_path / "out", data, "lambada", limit=1)
    with pytest.raises(UsageError, match="holds a zero-shot evaluation with seed=0, not 1"):
        run(model, tmp_path / "out", data, "lambada", Options(seed=1))
    other = replace(model.checkpoint, adapter=None)
    with pytest.raises(UsageError, match="fingerprint="):
        run(LanguageModel(other), tmp_path / "out", data, "lambada")
    with pytest.raises(UsageError, match="limit=0 must be at least 1"):
        run(model, tmp_path / "out", data, "lambada", limit=0)


def test_a_ledger_of_something_else_is_named(model: LanguageModel, data: TaskData, tmp_path: Path) -> None:
    run(model, tmp_path / "out", data, "lambada", limit=1)
    (tmp_path / "out" / "items.jsonl").write_text('{"task": "lambada"}\n')
    with pytest.raises(FailureError, match=r"items\.jsonl is damaged"):
        run(model, tmp_path / "out", data, "lambada")


def test_progress_is_told(model: LanguageModel, data: TaskData, tmp_path: Path) -> None:
    events: list[StageProgress] = []
    tasks = find_tasks("arc-easy,lambada-written")
    evaluate(model, tasks, tmp_path / "out", Options(), data=data, observe=events.append)
    assert [(event.stage, event.done, event.total) for event in events] == [
        ("arc-easy", 0, 2),
        ("arc-easy", 1, 2),
        ("arc-easy", 2, 2),
        ("lambada-written", 0, 2),
        ("lambada-written", 1, 2),
        ("lambada-written", 2, 2),
    ]


def test_a_prompt_that_does_not_fit_is_counted(data: TaskData, tmp_path: Path) -> None:
    narrow = LanguageModel(tiny_checkpoint(replace(CONFIG, max_positions=24)))
    report = run(narrow, tmp_path / "out", data, "lambada,winogrande")
    assert [task.num_cut for task in report.tasks] == [2, 2]

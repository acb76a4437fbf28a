"""Tasks whose answer is code that is run."""

from collections.abc import Iterator
from typing import Any

from unmask.evaluation.scoring import Gap, GenerationRequest
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.item import Item, Program
from unmask.evaluation.tasks.task import Task

MAX_TOKENS = 512
MAX_LINE_TOKENS = 64

_TOP_LEVEL = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function has ended: HumanEval's stops (Chen et al. 2021, arXiv 2107.03374)."""


def _check(doc: dict[str, Any]) -> str:
    """Return the code that tests a HumanEval function."""
    return f"\n{doc['test']}\ncheck({doc['entry_point']})\n"


def _humaneval(data: TaskData) -> Iterator[Item]:
    for line in data.documents("codex_humaneval/gold_bpb_0shot"):
        doc = line["doc"]
        request = GenerationRequest(doc["prompt"], _TOP_LEVEL, MAX_TOKENS)
        yield Program(doc["task_id"], request, doc["prompt"], _check(doc))


def _infilling(data: TaskData) -> Iterator[Item]:
    """Yield every line of every solution that is not blank, taken out (Bavarian et al. 2022, arXiv 2207.14255)."""
    for line in data.documents("codex_humaneval/gold_bpb_0shot"):
        doc = line["doc"]
        lines = doc["canonical_solution"].split("\n")
        for index, removed in enumerate(lines):
            if not removed.strip():
                continue
            head = doc["prompt"] + "".join(f"{kept}\n" for kept in lines[:index])
            after = "".join(f"\n{kept}" for kept in lines[index + 1 :])
            request = GenerationRequest(head, ("\n",), MAX_LINE_TOKENS, Gap(after, removed))
            yield Program(f"{doc['task_id']}/{index}", request, head, after + _check(doc))


def _mbpp(data: TaskData) -> Iterator[Item]:
    for line in data.documents("codex_mbpp/gold_bpb_0shot"):
        doc, prompt = line["doc"], line["request"]
        stops = tuple(stop for stop in prompt["stop_sequences"] if not stop.endswith("|>"))
        tests = "\n".join([doc["test_setup_code"], *doc["test_list"]])
        request = GenerationRequest(prompt["context"], stops, MAX_TOKENS)
        yield Program(str(doc["task_id"]), request, "", f"\n{tests}\n")


PROGRAM_TASKS = {
    "humaneval": Task(
        "program", "HumanEval: a function from its docstring", "test", 164, "pass@1", _humaneval
    ),
    "humaneval-infilling": Task(
        "infilling", "HumanEval: one line of a solution, taken out", "test", 1033, "pass@1", _infilling
    ),
    "mbpp": Task("program", "MBPP: a function from a sentence and a test", "test", 500, "pass@1", _mbpp),
}

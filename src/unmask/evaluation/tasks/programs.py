"""Tasks whose answer is code that is run."""

import re
from collections.abc import Iterator
from typing import Any

from unmask.evaluation.scoring import Gap, GenerationRequest
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.item import Item, Program
from unmask.evaluation.tasks.task import Task

MAX_TOKENS = 512

_TOP_LEVEL = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function has ended: HumanEval's stops (Chen et al. 2021, arXiv 2107.03374)."""


def _check(doc: dict[str, Any]) -> str:
    """Return the code that tests a HumanEval function."""
    return f"\n{doc['test']}\ncheck({doc['entry_point']})\n"


def _humaneval(data: TaskData) -> Iterator[Item]:
    for line in data.documents("codex_humaneval/gold_bpb_0shot"):
        doc = line["doc"]
        # Many tokenizers join a line feed with the spaces behind it, so a prompt that ends in one is strange text.
        prompt = doc["prompt"].rstrip()
        yield Program(doc["task_id"], GenerationRequest(prompt, _TOP_LEVEL, MAX_TOKENS), prompt, _check(doc))


def _infilling(data: TaskData) -> Iterator[Item]:
    """Yield every line of every solution that is not blank, taken out (Bavarian et al. 2022, arXiv 2207.14255)."""
    for line in data.documents("codex_humaneval/gold_bpb_0shot"):
        doc = line["doc"]
        lines = doc["canonical_solution"].split("\n")
        for index, own in enumerate(lines):
            if not own.strip():
                continue
            before = doc["prompt"] + "".join(f"{kept}\n" for kept in lines[:index])
            after = "".join(f"\n{kept}" for kept in lines[index + 1 :])
            head = before.rstrip()
            removed = before[len(head) :] + own
            # Room for a line of any tokenizer, and little more: nothing that is written tells when a line ends.
            max_tokens = len(removed.encode()) // 2 + 8
            request = GenerationRequest(head, (), max_tokens, Gap(after, removed))
            yield Program(f"{doc['task_id']}/{index}", request, head, after + _check(doc), first_line)


def first_line(text: str) -> str:
    """Return the first line of a text that is not blank, with all the space before it."""
    found = re.match(r"\s*[^\n]*", text)
    assert found is not None  # it may be empty
    return found[0]


def _solution(item: str) -> str:
    """Return the id of the problem that a line was taken from."""
    return item.rpartition("/")[0]


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
        "infilling",
        "HumanEval: one line of a solution, taken out",
        "test",
        1033,
        "pass@1",
        _infilling,
        problem=_solution,
    ),
    "mbpp": Task("program", "MBPP: a function from a sentence and a test", "test", 500, "pass@1", _mbpp),
}

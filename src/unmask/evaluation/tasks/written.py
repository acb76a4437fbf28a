"""Tasks whose answer is written and then compared: every mode and rule of decoding can differ on them."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from unmask.evaluation.scoring import GenerationRequest
from unmask.evaluation.tasks.choices import BASIC_SKILLS, basic_skills_member
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.item import Item, WrittenAnswer
from unmask.evaluation.tasks.task import Task

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """Return the last number in a text, without dollar signs and thousands separators, or None."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace("$", "").replace(",", "")) if found else None


def ends_in_number(text: str, *, number: float) -> bool:
    """Say whether the last number in a text is this one."""
    return last_number(text) == number


def begins_with_word(text: str, *, word: str) -> bool:
    """Say whether a text begins with this very word."""
    return re.match(rf"\s*{re.escape(word)}(?!\w)", text) is not None


def is_text(text: str, *, expected: str) -> bool:
    """Say whether two texts are the same but for the space around them."""
    return text.strip() == expected.strip()


def _gsm8k(data: TaskData) -> Iterator[Item]:
    """Yield problems after eight worked examples (Wei et al. 2022, arXiv 2201.11903); the last number is the answer."""
    for line in data.documents("gsm8k/gold_bpb_5shot"):
        request = GenerationRequest(line["request"]["context"], ("Question:", "\n\n"), 256)
        number = last_number(line["doc"]["short_answer"])
        assert number is not None  # every answer of the set is one
        yield WrittenAnswer(str(line["doc_id"]), request, partial(ends_in_number, number=number))


def _lambada(data: TaskData) -> Iterator[Item]:
    for line in data.documents("lambada/bpb_0shot"):
        request = GenerationRequest(line["doc"]["query"], ("\n",), 8)
        word = line["doc"]["choices"][0]
        yield WrittenAnswer(str(line["doc_id"]), request, partial(begins_with_word, word=word))


def _basic_skills(skill: str) -> Callable[[TaskData], Iterable[Item]]:
    def load(data: TaskData) -> Iterator[Item]:
        for line in data.documents(basic_skills_member(skill)):
            request = GenerationRequest(line["request"]["context"], ("\n",), 32)
            expected = line["doc"]["choices"][line["doc"]["gold"]]
            yield WrittenAnswer(str(line["doc_id"]), request, partial(is_text, expected=expected))

    return load


WRITTEN_TASKS = {
    "gsm8k": Task(
        "written answer",
        "GSM8K: word problems, worked out",
        "test",
        1319,
        "exact_match",
        _gsm8k,
        shots=8,
    ),
    "lambada-written": Task(
        "written answer",
        "LAMBADA, the last word written out in up to 8 tokens",
        "test",
        5153,
        "exact_match",
        _lambada,
    ),
    **{
        f"basic-skills-{skill}-written": Task(
            "written answer",
            f"BasicSkills: {skill.replace('-', ' ')}, the right choice written out",
            "validation",
            num_items,
            "exact_match",
            _basic_skills(skill),
            shots=5,
        )
        for skill, num_items in BASIC_SKILLS.items()
    },
}

"""Multiple-choice and last-word tasks; the prompts are those of lm-evaluation-harness where it has the task."""

from collections.abc import Callable, Iterable, Iterator

from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.item import Item, LastWord, MultipleChoice
from unmask.evaluation.tasks.task import Line, Task

BASIC_SKILLS = {
    "arithmetic": 1047,
    "coding": 1012,
    "common-knowledge": 1037,
    "logical-reasoning": 1118,
    "pattern": 534,
    "string-operations": 1219,
}
"""The parts of BasicSkills, with their numbers of items."""

_UNCONDITIONAL = "Answer:"
"""What stands in the place of the question when a choice is scored without it, as in the packaged files."""


def basic_skills_member(skill: str) -> str:
    """Return the packaged file of one part of BasicSkills."""
    return f"basic_skills_{skill.replace('-', '_')}/rc_5shot"


def _query(line: Line) -> str:
    return str(line["doc"]["query"])


def _full_context(line: Line) -> str:
    return str(line["request"]["context"])


def _piqa_question(line: Line) -> str:
    return f"Question: {line['doc']['goal']}\nAnswer:"


def _sciq_question(line: Line) -> str:
    doc = line["doc"]
    return f"{doc['support'].lstrip()}\nQuestion: {doc['question']}\nAnswer:"


def _choice_items(
    member: str, context: Callable[[Line], str], unconditional: str | None = None
) -> Callable[[TaskData], Iterable[Item]]:
    """Return a loader for documents that hold their choices and the index of the right one."""

    def load(data: TaskData) -> Iterator[Item]:
        for line in data.documents(member):
            choices = tuple(line["doc"]["choices"])
            contexts = (context(line),) * len(choices)
            yield MultipleChoice(
                str(line["doc_id"]), contexts, choices, int(line["doc"]["gold"]), unconditional
            )

    return load


def _winogrande(data: TaskData) -> Iterator[Item]:
    """Yield sentences with a blank: what follows it is scored after each way to fill it (Trinh and Le 2018)."""
    for line in data.documents("winogrande/rc_0shot"):
        doc = line["doc"]
        before, _, after = doc["sentence"].partition("_")
        contexts = (before + doc["option1"], before + doc["option2"])
        yield MultipleChoice(str(line["doc_id"]), contexts, (after.strip(),) * 2, int(doc["answer"]) - 1)


def _lambada(data: TaskData) -> Iterator[Item]:
    for line in data.documents("lambada/bpb_0shot"):
        yield LastWord(str(line["doc_id"]), _query(line), str(line["doc"]["choices"][0]))


CHOICE_TASKS = {
    "lambada": Task(
        "last word", "LAMBADA (OpenAI's version): the last word of a passage", "test", 5153, "acc", _lambada
    ),
    "hellaswag": Task(
        "multiple choice",
        "HellaSwag: how a description goes on",
        "validation",
        10_042,
        "acc_norm",
        _choice_items("hellaswag/rc_0shot", _query),
    ),
    "piqa": Task(
        "multiple choice",
        "PIQA: how to reach a physical goal",
        "validation",
        1838,
        "acc_norm",
        _choice_items("piqa/rc_0shot", _piqa_question),
    ),
    "arc-easy": Task(
        "multiple choice",
        "ARC-Easy: grade-school science",
        "test",
        2376,
        "acc_norm",
        _choice_items("arc_easy/test_rc_5shot", _query, _UNCONDITIONAL),
    ),
    "arc-challenge": Task(
        "multiple choice",
        "ARC-Challenge: science that word statistics do not answer",
        "test",
        1172,
        "acc_norm",
        _choice_items("arc_challenge/test_rc_5shot", _query, _UNCONDITIONAL),
    ),
    "winogrande": Task(
        "multiple choice", "WinoGrande: what a pronoun means", "validation", 1267, "acc", _winogrande
    ),
    "sciq": Task(
        "multiple choice",
        "SciQ: science, with a passage that helps",
        "validation",
        1000,
        "acc_norm",
        _choice_items("sciq/rc_0shot", _sciq_question, _UNCONDITIONAL),
    ),
    "boolq": Task(
        "multiple choice",
        "BoolQ: yes or no, from a passage",
        "validation",
        3270,
        "acc",
        _choice_items("boolq/rc_0shot", _query),
    ),
    **{
        f"basic-skills-{skill}": Task(
            "multiple choice",
            f"BasicSkills: {skill.replace('-', ' ')}",
            "validation",
            num_items,
            "acc",
            _choice_items(basic_skills_member(skill), _full_context),
            shots=5,
        )
        for skill, num_items in BASIC_SKILLS.items()
    },
}

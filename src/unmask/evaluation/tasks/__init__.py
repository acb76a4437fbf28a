"""Zero-shot tasks that need no model hub: their data, their items, how answers are scored. Nothing here needs torch."""

from fnmatch import fnmatchcase

from unmask.errors import UsageError
from unmask.evaluation.tasks.choices import CHOICE_TASKS
from unmask.evaluation.tasks.programs import PROGRAM_TASKS
from unmask.evaluation.tasks.puzzles import PUZZLE_TASKS
from unmask.evaluation.tasks.task import Task
from unmask.evaluation.tasks.written import WRITTEN_TASKS
from unmask.registry import Registry

TASKS: Registry[Task] = Registry(
    "task",
    group="unmask.tasks",
    items={**CHOICE_TASKS, **WRITTEN_TASKS, **PROGRAM_TASKS, **PUZZLE_TASKS},
)


def find_tasks(text: str) -> dict[str, Task]:
    """Return the tasks that a text such as ``piqa,basic-skills-*`` names, in its order.

    Raise UsageError, with the nearest name, for one that nobody knows.
    """
    names: list[str] = []
    for pattern in (part.strip() for part in text.split(",")):
        found = [name for name in TASKS.names() if fnmatchcase(name, pattern)]
        if not found and any(sign in pattern for sign in "*?["):
            raise UsageError(f"no task is called like {pattern!r}", f"choose from {', '.join(TASKS.names())}")
        names += found or [pattern]
    return {name: TASKS.get(name) for name in names}

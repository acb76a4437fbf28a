"""What a model scored on a task, with standard errors."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmask.evaluation.average import Average, average
from unmask.evaluation.item_record import ItemRecord
from unmask.evaluation.tasks.task import Kind, Task


@dataclass(frozen=True)
class TaskReport:
    """A task's scores on its first `num_items` of `of_items` items.

    `scores`: means over items; their samples are the problems that the items were made from. `metric` names the one
    that counts. `digest`: SHA-256 over those of the items, in order; equal digests mean equal prompts. `num_cut`: items
    whose prompt did not fit the window. `tokens_per_forward`: of what was written, the prefill left out; None where
    nothing was.
    """

    task: str
    kind: Kind
    split: str
    shots: int
    metric: str
    num_items: int
    of_items: int
    digest: str
    scores: Mapping[str, Average]
    num_cut: int
    num_tokens: int
    num_forwards: int
    num_decode_forwards: int
    tokens_per_forward: Average | None
    seconds: float

    @classmethod
    def of(cls, name: str, task: Task, records: Sequence[ItemRecord]) -> "TaskReport":
        """Sum up the records of a task's items, one or more, in the order of the items."""
        problems = [task.problem(record.item) for record in records]
        values: dict[str, tuple[list[float], list[str]]] = {}
        for record, problem in zip(records, problems, strict=True):
            for metric, value in record.scores.items():
                scores, of = values.setdefault(metric, ([], []))
                scores.append(value)
                of.append(problem)
        averages = {
            metric: average(scores, [1.0] * len(scores), of) for metric, (scores, of) in values.items()
        }
        num_tokens = [record.num_tokens for record in records]
        num_decode_forwards = [record.num_decode_forwards for record in records]
        return cls(
            task=name,
            kind=task.kind,
            split=task.split,
            shots=task.shots,
            metric=task.metric,
            num_items=len(records),
            of_items=task.num_items,
            digest=hashlib.sha256("".join(record.digest for record in records).encode()).hexdigest(),
            scores={metric: mean for metric, mean in averages.items() if mean is not None},
            num_cut=sum(record.num_dropped > 0 for record in records),
            num_tokens=sum(num_tokens),
            num_forwards=sum(record.num_forwards for record in records),
            num_decode_forwards=sum(num_decode_forwards),
            tokens_per_forward=average(num_tokens, num_decode_forwards, problems),
            seconds=round(sum(record.seconds for record in records), 3),
        )

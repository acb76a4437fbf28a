"""One way to decode on the frontier: what its texts took and what they are worth."""

from dataclasses import dataclass

from unmask.evaluation.agreement import Agreement
from unmask.evaluation.average import Average
from unmask.evaluation.text_quality import TextQuality
from unmask.evaluation.ways import Way


@dataclass(frozen=True)
class TaskScore:
    """One task in one way: its own metric."""

    task: str
    metric: str
    score: Average
    tokens_per_forward: Average | None


@dataclass(frozen=True)
class FrontierPoint:
    """One way to decode. The samples of all averages are prompts, of task scores items.

    `forwards_per_text`: decode forwards. `as_ar`, `as_serial`: agreement with what mode ar, and the same model one
    token at a time (rule top-k:1), write at temperature 0; None where the model has no such mode.
    """

    way: Way
    name: str
    tokens_per_forward: Average | None
    forwards_per_text: Average | None
    quality: TextQuality
    as_ar: Agreement | None
    as_serial: Agreement | None
    tasks: tuple[TaskScore, ...]

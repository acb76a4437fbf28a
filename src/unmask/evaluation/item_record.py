"""What is written down of one item."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from unmask.evaluation.scoring import Answer, Generated
from unmask.evaluation.tasks.item import Item


@dataclass(frozen=True)
class ItemRecord:
    """One line of the ledger: an item's scores, what the model answered, and what that took.

    `digest`: SHA-256 of the requests. `answers`: log-likelihoods in nats, or texts. The counts are those of all answers
    together, `num_dropped` the tokens that the model's window had no room for.
    """

    task: str
    item: str
    digest: str
    scores: Mapping[str, float]
    answers: tuple[float | str, ...]
    remark: str
    num_dropped: int
    num_tokens: int
    num_forwards: int
    num_decode_forwards: int
    seconds: float

    @classmethod
    def of(cls, task: str, item: Item, answers: Sequence[Answer], seconds: float) -> "ItemRecord":
        """Score the answers to an item; `seconds` are those of the model."""
        scored = item.score(answers)
        written = [answer for answer in answers if isinstance(answer, Generated)]
        return cls(
            task=task,
            item=item.id,
            digest=digest_of(item),
            scores=scored.scores,
            answers=tuple(
                answer.text if isinstance(answer, Generated) else answer.nats for answer in answers
            ),
            remark=scored.remark,
            num_dropped=sum(answer.num_dropped for answer in answers),
            num_tokens=sum(answer.num_tokens for answer in written),
            num_forwards=sum(answer.num_forwards for answer in written),
            num_decode_forwards=sum(answer.num_decode_forwards for answer in written),
            seconds=round(seconds, 4),
        )


def digest_of(item: Item) -> str:
    """Return the SHA-256 of an item's requests."""
    fields = [asdict(request) for request in item.requests]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

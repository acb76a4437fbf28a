"""How far one way of decoding writes what another one does."""

from collections.abc import Sequence
from dataclasses import dataclass

from unmask.evaluation.average import Average, average

Tokens = Sequence[int]


@dataclass(frozen=True)
class Agreement:
    """Averages per token of the texts compared with; the samples are prompts.

    `before_difference`: the share of tokens before the first that differs. `overall`: the share of places that hold the
    same token, of all places of the longer text.
    """

    before_difference: Average
    overall: Average


def common_prefix(one: Tokens, other: Tokens) -> int:
    """Count the tokens before the first difference."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def measure_agreement(texts: Sequence[Tokens], truths: Sequence[Tokens]) -> Agreement | None:
    """Compare each text with its truth; None for no texts at all."""
    pairs = list(zip(texts, truths, strict=True))
    before = average([common_prefix(*pair) for pair in pairs], [len(truth) for truth in truths])
    equal = [sum(a == b for a, b in zip(*pair, strict=False)) for pair in pairs]
    overall = average(equal, [max(map(len, pair)) for pair in pairs])
    return None if before is None or overall is None else Agreement(before, overall)

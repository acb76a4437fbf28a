"""Sources of text with their weights: ``SOURCE`` or ``SOURCE:WEIGHT`` (no torch)."""

import math
from collections.abc import Sequence
from pathlib import Path

from unmask.errors import UsageError


def parse_mixture(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Return the sources and their weights, None where no source has one; a source without one weighs 1.

    What exists under the whole name is a file with a colon in it. Raise UsageError for a weight that is not a positive
    number.
    """
    parts = [_parse(text) for text in texts]
    sources = tuple(source for source, _ in parts)
    if all(weight is None for _, weight in parts):
        return sources, None
    return sources, tuple(1.0 if weight is None else weight for _, weight in parts)


def _parse(text: str) -> tuple[str, float | None]:
    source, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, None
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UsageError(f"--text {text!r}: the weight {number!r} is no positive number", "say FILE:0.5")
    return source, weight

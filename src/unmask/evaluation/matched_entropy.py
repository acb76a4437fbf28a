"""Ways compared where their texts are equally varied: bits per byte at one entropy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from unmask.evaluation.frontier_point import FrontierPoint


@dataclass(frozen=True)
class Matched:
    """A way at the temperature where its entropy is the reference's: bits per byte between two measured temperatures.

    None where the measured entropies do not enclose the reference.
    """

    name: str
    bits_per_byte: float | None
    temperature: float | None


def reference_of(points: Sequence[FrontierPoint]) -> tuple[str | None, float | None]:
    """Return the way to compare at, and its entropy; None where only one temperature was measured."""
    if len({point.way.temperature for point in points}) < 2:
        return None, None
    plain = (point for point in points if (point.way.mode, point.way.temperature) == ("ar", 1.0))
    chosen = next(plain, points[0])
    entropy = chosen.quality.entropy
    return chosen.name, None if entropy is None else entropy.mean


def match_entropy(points: Sequence[FrontierPoint], entropy: float) -> tuple[Matched, ...]:
    """Interpolate every way over its temperatures, linearly between the first neighbours that enclose the entropy."""
    ways = dict.fromkeys(replace(point.way, temperature=0.0) for point in points)
    found = []
    for way in ways:
        own = sorted(
            (
                (point.way.temperature, point.quality.entropy.mean, point.quality.bits_per_byte.mean)
                for point in points
                if replace(point.way, temperature=0.0) == way
                and point.quality.entropy is not None
                and point.quality.bits_per_byte is not None
            ),
        )
        bits = heat = None
        for (cool, low, few), (hot, high, many) in pairwise(own):
            if min(low, high) <= entropy <= max(low, high):
                share = 0.0 if high == low else (entropy - low) / (high - low)
                bits, heat = few + share * (many - few), cool + share * (hot - cool)
                break
        found.append(Matched(way.name, bits, heat))
    return tuple(found)

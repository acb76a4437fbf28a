"""What a forward costs here, by its number of tokens."""

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

_MEMORY = 50.0  # forwards of a size, after which what was seen before has faded to 1/e


class CostCurve:
    """Seconds of a forward by its number of tokens: piecewise linear through measurements, and never falling.

    Measurements are pooled by powers of two of their tokens and fade as newer ones come.
    """

    def __init__(self, measurements: Iterable[tuple[int, float]] = ()) -> None:
        self._pools: dict[int, tuple[float, float, float]] = {}  # weight, mean tokens, mean seconds
        self._knots: list[tuple[float, float]] | None = None
        for tokens, seconds in measurements:
            self.observe(tokens, seconds)

    def observe(self, tokens: int, seconds: float) -> None:
        """Take the measurement of one forward; ValueError for no tokens or a time that is not positive."""
        if tokens < 1 or seconds <= 0:
            raise ValueError(f"a forward of {tokens} tokens in {seconds} s is no measurement")
        weight, mean_tokens, mean_seconds = self._pools.get(tokens.bit_length(), (0.0, 0.0, 0.0))
        weight = min(weight, _MEMORY) + 1
        self._pools[tokens.bit_length()] = (
            weight,
            mean_tokens + (tokens - mean_tokens) / weight,
            mean_seconds + (seconds - mean_seconds) / weight,
        )
        self._knots = None

    @property
    def is_known(self) -> bool:
        """Whether there are measurements of at least two sizes."""
        return len(self._pools) > 1

    def seconds(self, tokens: float) -> float:
        """Return the cost of a forward: below the fewest tokens measured theirs, beyond the most by the last slope.

        Raises ValueError before there are measurements.
        """
        knots = self._fitted()
        if tokens <= knots[0][0] or len(knots) == 1:
            return knots[0][1]
        place = min(bisect_right(knots, (tokens, float("inf"))), len(knots) - 1)
        (x0, y0), (x1, y1) = knots[place - 1], knots[place]
        return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)

    def to_json(self) -> str:
        """Return the measurements as text that `from_json` reads."""
        return json.dumps(sorted(self._pools.values(), key=lambda pool: pool[1]))

    @classmethod
    def from_json(cls, text: str) -> "CostCurve":
        """Read what `to_json` wrote; ValueError for anything else."""
        curve = cls()
        try:
            for weight, tokens, seconds in json.loads(text):
                if not (weight > 0 and tokens >= 1 and 0 < seconds < math.inf):
                    raise ValueError(f"not a cost curve: {text[:60]}")
                curve._pools[int(tokens).bit_length()] = (float(weight), float(tokens), float(seconds))
        except TypeError as error:
            raise ValueError(f"not a cost curve: {text[:60]}") from error
        return curve

    def _fitted(self) -> list[tuple[float, float]]:
        """Pool neighbours that fall until none does (isotonic regression by pooling adjacent violators)."""
        if not self._pools:
            raise ValueError("nothing has been measured yet")
        if self._knots is None:
            blocks: list[list[tuple[float, float, float]]] = []
            for pool in sorted(self._pools.values(), key=lambda pool: pool[1]):
                blocks.append([pool])
                while len(blocks) > 1 and _level(blocks[-2]) >= _level(blocks[-1]):
                    blocks[-2:] = [blocks[-2] + blocks[-1]]
            self._knots = [(tokens, _level(block)) for block in blocks for _, tokens, _ in block]
        return self._knots


def _level(block: Sequence[tuple[float, float, float]]) -> float:
    return sum(weight * seconds for weight, _, seconds in block) / sum(weight for weight, _, _ in block)

"""Noise keyed by (seed, position, step): the same wherever, whenever and beside whatever a request runs.

Every draw is one double-precision uniform from the Philox counter generator (Salmon et al. 2011), so that a token's
noise never depends on its batch row, and sampling by inverse distribution function keeps tokens down to 2^-53.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_UINT64 = 2**64
_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_KEY_STEPS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)


class Stream(IntEnum):
    """Which of the independent draws at one (seed, position, step) is meant."""

    TOKEN = 0
    ACCEPT = 1
    RESIDUAL = 2
    ORDER = 3
    CORRUPTION = 4


def uniforms(
    seeds: Sequence[int],
    positions: npt.ArrayLike,
    steps: Sequence[int],
    stream: Stream,
    *,
    draws: npt.ArrayLike = 0,
) -> npt.NDArray[np.float64]:
    """Return the uniforms in [0, 1) of B rows: B seeds, (B, L) positions and B steps, all 0 or more -> (B, L).

    `draws`: numbers, broadcast to (B, L), that tell apart several draws at one place. Each uniform is the first double
    of numpy's Philox with key (seed, stream) and counter (position, step, draw); here all of them are computed at once,
    fifty times faster than a generator for each.
    """
    places = np.ascontiguousarray(positions).astype(np.uint64)
    nothing = np.zeros_like(places)
    numbers = np.asarray(draws).astype(np.uint64) + nothing
    key = np.array([[seed % _UINT64] for seed in seeds], np.uint64) + nothing, nothing + np.uint64(stream)
    # numpy's generator counts up before its first block.
    counter = places + np.uint64(1), np.array([[step] for step in steps], np.uint64) + nothing
    word = _philox(key, (*counter, numbers, nothing))
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _philox(key: tuple[Words, Words], counter: tuple[Words, Words, Words, Words]) -> Words:
    """Return the first word of each block of Philox4x64-10; everything wraps around at 2^64."""
    (key0, key1), (x0, x1, x2, x3) = key, counter
    for _ in range(_ROUNDS):
        (high0, low0), (high1, low1) = _product(_MULTIPLIERS[0], x0), _product(_MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0
        key0, key1 = key0 + _KEY_STEPS[0], key1 + _KEY_STEPS[1]
    return x0


def _product(factor: np.uint64, words: Words) -> tuple[Words, Words]:
    """Return the high and low words of the 128-bit products."""
    factor_low, factor_high, low, high = factor & _LOW, factor >> _HALF, words & _LOW, words >> _HALF
    middle = factor_high * low + (factor_low * low >> _HALF)
    carry = factor_low * high + (middle & _LOW)
    return factor_high * high + (middle >> _HALF) + (carry >> _HALF), factor * words

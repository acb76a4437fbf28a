"""Noise keyed by (seed, position, step): the same wherever, whenever and beside whatever a request runs.

Every draw is one double-precision uniform from the Philox counter generator (Salmon et al. 2011), so that a token's
noise never depends on its batch row, and sampling by inverse distribution function keeps tokens down to 2^-53.
"""

from enum import IntEnum

import numpy as np

_UINT64 = 2**64


class Stream(IntEnum):
    """Which of the independent draws at one (seed, position, step) is meant."""

    TOKEN = 0
    ACCEPT = 1
    RESIDUAL = 2
    ORDER = 3
    CORRUPTION = 4


def uniform(seed: int, position: int, step: int, stream: Stream) -> float:
    """Return the uniform in [0, 1) that belongs to these keys."""
    key = (seed % _UINT64) | (int(stream) << 64)
    counter = position | (step << 64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())

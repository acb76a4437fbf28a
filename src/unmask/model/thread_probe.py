"""How many threads to decode with: measured, because on a busy machine more of them can be many times slower.

Decoding is thousands of products of well under a millisecond, each of which ends when its last thread does. Where
another program holds one of the cores, that thread waits for its next turn, some milliseconds, every time.
"""

import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F

_ROWS, _IN, _OUT = 9, 576, 1536
_WARM_UPS, _PRODUCTS = 5, 40
_WORTH = 1.1


def fastest_thread_count(most: int) -> int:
    """Return how many threads, 1 or 2 or 4 ... or `most`, finish a series of small products first, at this moment."""
    before = torch.get_num_threads()
    counts = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power < most)})
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(_ROWS, _IN, generator=generator), torch.randn(_OUT, _IN, generator=generator)
    seconds: dict[int, float] = {}
    try:
        for count in counts:
            torch.set_num_threads(count)
            for _ in range(_WARM_UPS):
                F.linear(rows, weight)
            began = time.perf_counter()
            for _ in range(_PRODUCTS):
                F.linear(rows, weight)
            seconds[count] = time.perf_counter() - began
    finally:
        torch.set_num_threads(before)
    return preferred_count(seconds)


def preferred_count(seconds: Mapping[int, float]) -> int:
    """Return the largest count that is about as fast as the fastest: large products gain more than these."""
    best = min(seconds.values())
    return max(count for count, taken in seconds.items() if taken <= _WORTH * best)

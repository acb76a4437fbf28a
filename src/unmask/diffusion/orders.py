"""Orders of decoding that depend on positions alone: which positions each round decides."""

from itertools import pairwise

import torch

Rounds = list[list[int]]


def left_to_right(length: int, num_rounds: int) -> Rounds:
    """Return runs of neighbours, from the left, of lengths that differ by one at most."""
    edges = [length * index // num_rounds for index in range(num_rounds + 1)]
    return [list(range(start, end)) for start, end in pairwise(edges)]


def strided(length: int, num_rounds: int) -> Rounds:
    """Return positions `num_rounds` apart: 0, n, 2n, ... then 1, n + 1, ..."""
    return [list(range(offset, length, num_rounds)) for offset in range(num_rounds)]


def shuffled(length: int, num_rounds: int, generator: torch.Generator) -> Rounds:
    """Return the rounds of `left_to_right` over randomly permuted positions."""
    places = torch.randperm(length, generator=generator).tolist()
    return [sorted(places[index] for index in one) for one in left_to_right(length, num_rounds)]


def bisection(length: int) -> Rounds:
    """Return the middle, then the middle of either half, and so on: floor(log2 length) + 1 rounds.

    Exact for Markov chains, as no round has two positions between the same decided neighbours.
    """
    rounds: Rounds = []
    spans = [(0, length)]
    while spans:
        middles = [(start + end) // 2 for start, end in spans]
        rounds.append(middles)
        halves = [
            half
            for (start, end), middle in zip(spans, middles, strict=True)
            for half in ((start, middle), (middle + 1, end))
        ]
        spans = [(start, end) for start, end in halves if start < end]
    return rounds

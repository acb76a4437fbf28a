"""Token sequences that begin alike, packed as a tree of causal segments: each shared beginning is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from unmask.evaluation.agreement import common_prefix
from unmask.layout import IntArray, Layout, Segment

Tokens = tuple[int, ...]

_LEAST_SHARED = 0.25
"""Neighbours that share less of the shorter one stay apart: attention is quadratic in the tokens of a tree."""


@dataclass
class PackedTrees:
    """Tokens packed for one forward, their segments, and for each sequence where its tokens lie among them."""

    tokens: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    places: dict[int, IntArray] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return Layout(self.segments)

    def grow(
        self,
        sequences: Sequence[tuple[int, Tokens]],
        depth: int = 0,
        parent: int | None = None,
        path: IntArray | None = None,
    ) -> None:
        """Add numbered sequences, sorted, that share their first `depth` tokens, which `parent` and its line hold."""
        path = np.empty(0, dtype=np.int64) if path is None else path
        # Sorted as they are, what the first and the last share all of them share.
        shared = common_prefix(sequences[0][1], sequences[-1][1])
        begin, own = len(self.tokens), sequences[0][1][depth:shared]
        offset = None if parent is None else self.segments[parent].length
        self.segments.append(Segment(depth, len(own), parent, offset))
        self.tokens += own
        path = np.concatenate([path, np.arange(begin, begin + len(own))])
        index = len(self.segments) - 1
        longer = []
        for number, tokens in sequences:
            if len(tokens) == shared:
                self.places[number] = path
            else:
                longer.append((number, tokens))
        for _, branch in groupby(longer, key=lambda numbered: numbered[1][shared]):
            self.grow(list(branch), shared, index, path)


def pack(sequences: Sequence[Tokens], *, max_tokens: int) -> list[PackedTrees]:
    """Pack sequences, none of them empty, into forwards of at most `max_tokens` unless a single one is longer.

    They are taken in the order of their tokens, which brings together those that begin alike.
    """
    forwards: list[list[list[tuple[int, Tokens]]]] = []
    previous: Tokens = ()
    num_tokens = 0
    for number, tokens in sorted(enumerate(sequences), key=lambda numbered: numbered[1]):
        shared = common_prefix(previous, tokens)
        joins = shared > 0 and shared >= _LEAST_SHARED * min(len(previous), len(tokens))
        added = len(tokens) - shared if joins else len(tokens)
        if not forwards or num_tokens + added > max_tokens:
            forwards.append([])
            num_tokens, added, joins = 0, len(tokens), False
        if not joins:
            forwards[-1].append([])
        forwards[-1][-1].append((number, tokens))
        num_tokens, previous = num_tokens + added, tokens
    packed = []
    for bushes in forwards:
        packed.append(PackedTrees())
        for bush in bushes:
            packed[-1].grow(bush)
    return packed

"""The streams of a training forward: clean pieces of text, and noisy copies of them that grow from the clean ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from unmask.layout import IntArray, Layout, Segment
from unmask.training.batches import Batch


@dataclass(frozen=True)
class Streams:
    """One packed forward over R pieces of N tokens in all, each beginning with a token that is given.

    `clean`: packed place of each batch token in the clean stream, (N,), or empty without one. `noisy`: packed place of
    each noisy token, (M,), `source` the batch token it is a copy of, `group` the number of its block, in which all
    share one time. `twin`: for each block, the one it is a second copy of, itself for a first copy: (blocks,).
    """

    layout: Layout
    clean: Tensor
    noisy: Tensor
    source: Tensor
    group: Tensor
    twin: Tensor

    @property
    def num_groups(self) -> int:
        return len(self.twin)

    @property
    def inside(self) -> Tensor:
        """Where the noisy tokens are when blocks become the rows of a matrix, padded on the right: (blocks, L) bool."""
        sizes = torch.bincount(self.group, minlength=self.num_groups)
        return torch.arange(int(sizes.max()))[None] < sizes[:, None]


def causal_stream(bounds: Sequence[int]) -> Streams:
    """Lay out pieces ``[bounds[r], bounds[r + 1])`` for autoregressive training: clean and causal, nothing noisy."""
    empty = torch.empty(0, dtype=torch.int64)
    layout = Layout([Segment(0, length) for length in np.diff(bounds).tolist()])
    return Streams(layout, torch.arange(bounds[-1]), empty, empty, empty, empty)


def noisy_stream(bounds: Sequence[int], *, copies: int = 1) -> Streams:
    """Lay out pieces for full attention: each one noisy sequence, given token included, that sees itself both ways."""
    builder = _Builder()
    for begin, end in pairwise(bounds):
        for copy in range(copies):
            root = Segment(0, end - begin, causal=False)
            builder.add_noisy([root], np.arange(begin, end), twins_before=copy)
    return builder.streams()


@dataclass(frozen=True)
class Cuts:
    """How the scored tokens of a piece are cut into the blocks that are denoised together.

    `lengths`: one is drawn for each run of scored tokens; none for the whole run as one block. With `random_phase` the
    first block of a run is cut short at random, so that a model serves blocks that begin anywhere.
    """

    lengths: tuple[int, ...] = ()
    random_phase: bool = False

    def bounds(self, length: int, generator: torch.Generator, *, whole: bool = False) -> list[int]:
        """Return where the blocks of `length` tokens begin, from 0 on, and where the last one ends.

        That is at `length`, or for `whole` blocks where it would end if there were more tokens.
        """
        if not self.lengths:
            return [0, length]
        block = self.lengths[_draw(len(self.lengths), generator)]
        first = 1 + _draw(block, generator) if self.random_phase else block
        starts = [0, *range(first, length, block)]
        last = starts[-1] + (first if len(starts) == 1 else block)
        return [*starts, last if whole else length]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator, device=generator.device)) if count > 1 else 0


def two_streams(
    batch: Batch, cuts: Cuts, generator: torch.Generator, *, copies: int = 1, end_token_id: int | None = None
) -> Streams:
    """Lay out ``[clean | noisy]``: causal pieces, and a canvas for each block of their scored tokens.

    A canvas sees the clean tokens before its block, and itself both ways; the clean stream sees no noise (BD3-LM,
    arXiv 2503.09573, with the strictly causal clean stream of Nemotron-Labs-Diffusion, arXiv 2607.05722). Where an
    answer closes with `end_token_id`, copies of it fill the last block up to the length it would have otherwise.
    """
    builder = _Builder()
    left = list(batch.spans)[::-1]
    for begin, end in pairwise(batch.bounds):
        parent = builder.add_clean(begin, end)
        canvases: list[Segment] = []
        sources: list[IntArray] = []
        while left and left[-1].begin < end:
            span = left.pop()
            closes = span.answers and int(batch.tokens[span.end - 1]) == end_token_id
            blocks = cuts.bounds(span.end - span.begin, generator, whole=closes)
            first = span.begin - begin
            canvases += [
                Segment(
                    first + start,
                    stop - start,
                    parent=parent,
                    offset=first + start,
                    causal=False,
                    adapter=True,
                )
                for start, stop in pairwise(blocks)
            ]
            sources.append(np.minimum(np.arange(span.begin, span.begin + blocks[-1]), span.end - 1))
        for copy in range(copies if canvases else 0):
            builder.add_noisy(canvases, np.concatenate(sources), twins_before=copy * len(canvases))
    return builder.streams()


@dataclass
class _Builder:
    """Streams in the making: segments, and the places of their tokens."""

    segments: list[Segment] = field(default_factory=list)
    clean: list[IntArray] = field(default_factory=list)
    noisy: list[IntArray] = field(default_factory=list)
    source: list[IntArray] = field(default_factory=list)
    group: list[IntArray] = field(default_factory=list)
    twin: list[int] = field(default_factory=list)
    num_packed: int = 0

    def add_clean(self, begin: int, end: int) -> int:
        """Add the causal root of a piece and return its number."""
        self.segments.append(Segment(0, end - begin))
        self.clean.append(self._places(end - begin))
        return len(self.segments) - 1

    def add_noisy(self, blocks: Sequence[Segment], source: IntArray, *, twins_before: int) -> None:
        """Add noisy blocks that copy the batch tokens `source`; their first copies stand so many blocks before."""
        first = len(self.twin)
        self.twin += range(first - twins_before, first - twins_before + len(blocks))
        self.segments += blocks
        self.group.append(np.repeat(np.arange(first, len(self.twin)), [block.length for block in blocks]))
        self.source.append(source)
        self.noisy.append(self._places(len(source)))

    def streams(self) -> Streams:
        return Streams(
            Layout(self.segments),
            _joined(self.clean),
            _joined(self.noisy),
            _joined(self.source),
            _joined(self.group),
            torch.tensor(self.twin, dtype=torch.int64),
        )

    def _places(self, count: int) -> IntArray:
        self.num_packed += count
        return np.arange(self.num_packed - count, self.num_packed)


def _joined(parts: list[IntArray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

"""The streams of a training forward: clean pieces of text, and noisy copies of them that grow from the clean ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from unmask.layout import IntArray, Layout, Segment


@dataclass(frozen=True)
class Streams:
    """One packed forward over R pieces of N tokens in all, each beginning with a token that is given.

    `clean`: packed place of each batch token in the clean stream, (N,), or empty without one. `noisy`: packed place of
    each noisy token, (M,), `source` the batch token it is a copy of, `group` the number of its block, in which all
    share one time. `num_groups` counts the blocks.
    """

    layout: Layout
    clean: Tensor
    noisy: Tensor
    source: Tensor
    group: Tensor
    num_groups: int


def causal_stream(bounds: Sequence[int]) -> Streams:
    """Lay out pieces ``[bounds[r], bounds[r + 1])`` for autoregressive training: clean and causal, nothing noisy."""
    empty = torch.empty(0, dtype=torch.int64)
    layout = Layout([Segment(0, length) for length in np.diff(bounds).tolist()])
    return Streams(layout, torch.arange(bounds[-1]), empty, empty, empty, 0)


def noisy_stream(bounds: Sequence[int]) -> Streams:
    """Lay out pieces for full attention: each one noisy sequence, given token included, that sees itself both ways."""
    lengths = np.diff(bounds)
    layout = Layout([Segment(0, length, causal=False) for length in lengths.tolist()])
    tokens = torch.arange(bounds[-1])
    group = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    return Streams(layout, torch.empty(0, dtype=torch.int64), tokens, tokens, group, len(lengths))


@dataclass(frozen=True)
class Cuts:
    """How a piece is cut into the blocks that are denoised together.

    `lengths`: one is drawn for each piece; none for the whole piece as one block. With `random_phase` the first block
    of a piece is cut short at random, so that a model serves blocks that begin anywhere.
    """

    lengths: tuple[int, ...] = ()
    random_phase: bool = False

    def starts(self, length: int, generator: torch.Generator) -> list[int]:
        """Return where the blocks of a piece of `length` tokens begin: ascending, from 1, after the given token."""
        if not self.lengths:
            return [1]
        block = self.lengths[_draw(len(self.lengths), generator)]
        first = 1 + _draw(block, generator) if self.random_phase else block
        return [1, *range(1 + first, length, block)]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator, device=generator.device)) if count > 1 else 0


def two_streams(bounds: Sequence[int], cuts: Cuts, generator: torch.Generator) -> Streams:
    """Lay out ``[clean | noisy]``: a causal piece, and a canvas for each block of the tokens after its given one.

    A canvas sees the clean tokens before its block, and itself both ways; the clean stream sees no noise (BD3-LM,
    arXiv 2503.09573, with the strictly causal clean stream of Nemotron-Labs-Diffusion, arXiv 2607.05722).
    """
    segments: list[Segment] = []
    clean: list[IntArray] = []
    noisy: list[IntArray] = []
    source: list[IntArray] = []
    group: list[IntArray] = []
    packed = num_groups = 0
    for begin, end in pairwise(bounds):
        length, parent = end - begin, len(segments)
        segments.append(Segment(0, length))
        clean.append(np.arange(packed, packed + length))
        packed += length
        if length == 1:
            continue
        starts = cuts.starts(length, generator)
        sizes = np.diff([*starts, length])
        segments += [
            Segment(start, int(size), parent=parent, offset=start, causal=False, adapter=True)
            for start, size in zip(starts, sizes, strict=True)
        ]
        noisy.append(np.arange(packed, packed + length - 1))
        source.append(np.arange(begin + 1, end))
        group.append(num_groups + np.repeat(np.arange(len(starts)), sizes))
        packed += length - 1
        num_groups += len(starts)
    return Streams(
        Layout(segments), _joined(clean), _joined(noisy), _joined(source), _joined(group), num_groups
    )


def _joined(parts: list[IntArray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

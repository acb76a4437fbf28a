"""Batches of packed pieces of documents, in an order that the seed alone decides."""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.training.shards import IntArray, Split


@dataclass(frozen=True)
class Batch:
    """Packed rows for one forward: row r is ``tokens[bounds[r] : bounds[r + 1]]``, int64.

    Each row is a piece of one document. It begins with the start token, which is given: never noised, never scored.
    The last piece of a document closes with the end token, which is scored and has the same id. `prompt` (N,) bool:
    further tokens that are given, such as the questions of a conversation; none without.
    """

    tokens: Tensor
    bounds: tuple[int, ...]
    prompt: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return len(self.bounds) - 1

    @property
    def given(self) -> Tensor:
        """Which tokens are not scored: (N,) bool, the start tokens and the prompts."""
        given = torch.zeros_like(self.tokens, dtype=torch.bool)
        given[list(self.bounds[:-1])] = True
        return given if self.prompt is None else given | self.prompt

    @property
    def num_scored(self) -> int:
        """Number of tokens that are not given."""
        return len(self.tokens) - int(self.given.sum())

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tokens on a device."""
        prompt = None if self.prompt is None else self.prompt.to(device)
        return Batch(self.tokens.to(device), self.bounds, prompt)


@dataclass(frozen=True)
class Pieces:
    """Documents cut into pieces of up to `length` tokens: (P,) where each begins in the split's run, and its size."""

    begins: IntArray
    sizes: IntArray

    @classmethod
    def cut(cls, ends: IntArray, length: int) -> "Pieces":
        """Cut documents that end at `ends` (D,) of the run, each from its start: only its last piece can be short."""
        starts = np.concatenate([[0], ends[:-1]])
        counts = -(-(ends - starts) // length)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.repeat(starts, counts) + length * number
        return cls(begins, np.minimum(length, np.repeat(ends, counts) - begins))


class Packs:
    """The pieces of a split in batches of up to `num_tokens` tokens, numbered without end, epoch after epoch.

    Every epoch has each piece once, in an order drawn from (seed, epoch). A batch never reaches into the next epoch.
    The numbers are the only coordinate: whoever trains step s with G batches a step takes numbers s G to
    (s + 1) G - 1, however many processes share them.
    """

    def __init__(self, split: Split, *, length: int, num_tokens: int, start_token_id: int, seed: int) -> None:
        if num_tokens <= length:
            raise ValueError(f"num_tokens={num_tokens} must exceed length={length}, for a start token")
        self.split, self.num_tokens, self.seed = split, num_tokens, seed
        self.start_token_id = start_token_id
        self.pieces = Pieces.cut(split.ends, length)
        self._begins = [0]
        self._epochs: dict[int, _Epoch] = {}

    def __getitem__(self, number: int) -> Batch:
        """Return batch `number`, counted from 0."""
        # Pieces of one length side by side share one attention call.
        chosen = sorted(self._chosen(number), key=lambda piece: -self.pieces.sizes[piece])
        parts = [np.empty(0, dtype=np.int64)]
        for piece in chosen:
            begin = int(self.pieces.begins[piece])
            parts += [
                np.array([self.start_token_id]),
                self.split.read(begin, begin + int(self.pieces.sizes[piece])),
            ]
        bounds = np.cumsum([0, *(int(self.pieces.sizes[piece]) + 1 for piece in chosen)])
        return Batch(torch.from_numpy(np.concatenate(parts)), tuple(bounds.tolist()))

    def num_scored(self, number: int) -> int:
        """Return how many tokens batch `number` scores, without reading it."""
        return int(self.pieces.sizes[self._chosen(number)].sum())

    def num_in_epoch(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return len(self._epoch(epoch).bounds) - 1

    def _chosen(self, number: int) -> IntArray:
        """Return the pieces of batch `number`."""
        while number >= self._begins[-1]:
            self._begins.append(self._begins[-1] + self.num_in_epoch(len(self._begins) - 1))
        index = bisect_right(self._begins, number) - 1
        epoch, within = self._epoch(index), number - self._begins[index]
        return epoch.order[epoch.bounds[within] : epoch.bounds[within + 1]]

    def _epoch(self, index: int) -> "_Epoch":
        if index not in self._epochs:
            self._epochs = {old: epoch for old, epoch in self._epochs.items() if old == index - 1}
            self._epochs[index] = self._packed(index)
        return self._epochs[index]

    def _packed(self, index: int) -> "_Epoch":
        """Order the pieces of an epoch and fill one batch after the other, each until the next piece does not fit."""
        order = np.random.default_rng((self.seed, index)).permutation(len(self.pieces.sizes))
        filled = np.cumsum(self.pieces.sizes[order] + 1)
        bounds = [0]
        while bounds[-1] < len(order):
            used = int(filled[bounds[-1] - 1]) if bounds[-1] else 0
            bounds.append(int(np.searchsorted(filled, used + self.num_tokens, side="right")))
        return _Epoch(order, np.array(bounds))


@dataclass(frozen=True)
class _Epoch:
    """An order of pieces (P,), and where in it each batch begins: (batches + 1,)."""

    order: IntArray
    bounds: IntArray

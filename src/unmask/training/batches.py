"""Batches of packed pieces of documents, in an order that the seed alone decides."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.training.shards import IntArray, Split


@dataclass(frozen=True)
class Span:
    """Tokens ``[begin, end)`` of a batch, side by side in one row and all scored.

    `answers`: they follow a prompt, and not only the start token of a row.
    """

    begin: int
    end: int
    answers: bool = False


@dataclass(frozen=True)
class Batch:
    """Packed rows for one forward: row r is ``tokens[bounds[r] : bounds[r + 1]]``, int64.

    Each row is a piece of one document. Its first token is given: never noised, never scored. It is the start token,
    unless the piece begins with a prompt. The last piece of a document closes with the end token, which has the same
    id and is scored. `prompt` (N,) bool: further tokens that are given, such as the questions of a conversation.
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
    def spans(self) -> tuple[Span, ...]:
        """The runs of scored tokens, in their order."""
        # A row begins with a given token, so no run goes from one into the next.
        given = np.concatenate([[True], self.given.cpu().numpy(), [True]])
        edges = np.flatnonzero(given[1:] != given[:-1]).tolist()
        prompt = np.zeros(len(self.tokens), np.bool_) if self.prompt is None else self.prompt.cpu().numpy()
        return tuple(
            Span(begin, end, bool(prompt[begin - 1]))
            for begin, end in zip(edges[::2], edges[1::2], strict=True)
        )

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
    """Documents cut into pieces of up to `length` tokens: (P,) where each begins in the split's run, and its size.

    `scored`: (P,) how many of its tokens are not given.
    """

    begins: IntArray
    sizes: IntArray
    scored: IntArray

    @classmethod
    def cut(cls, ends: IntArray, length: int) -> "Pieces":
        """Cut documents that end at `ends` (D,) of the run, each from its start: only its last piece can be short."""
        starts = np.concatenate([[0], ends[:-1]])
        counts = -(-(ends - starts) // length)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.repeat(starts, counts) + length * number
        sizes = np.minimum(length, np.repeat(ends, counts) - begins)
        return cls(begins, sizes, sizes)

    @classmethod
    def of_split(cls, split: Split, length: int) -> "Pieces":
        """Cut the documents of a split; pieces of which all is given are left out."""
        pieces = cls.cut(split.ends, length)
        if not split.has_prompts:
            return pieces
        scored = pieces.sizes.copy()
        owner = np.searchsorted(split.bounds, pieces.begins, side="right") - 1
        for shard in range(len(split.shards)):
            first, last = (int(bound) for bound in split.bounds[shard : shard + 2])
            here = np.flatnonzero(owner == shard)
            given = split.read_prompt(first, last)
            scored[here] -= np.add.reduceat(given, pieces.begins[here] - first, dtype=np.int64)
        kept = scored > 0
        return cls(pieces.begins[kept], pieces.sizes[kept], scored[kept])


class Packs:
    """The pieces of a split in batches of up to `num_tokens` tokens, numbered without end, epoch after epoch.

    Every epoch has each piece once, in an order drawn from (seed, epoch). Of a mixture it has pieces of each source in
    proportion to the `weights`, counted in tokens and up to half a piece: all of the source that is scarcest for its
    weight, and of the others as many as go with it, drawn anew. A batch never reaches into the next epoch. The numbers
    are the only coordinate: whoever trains step s with G batches a step takes numbers s G to (s + 1) G - 1, however
    many processes share them.
    """

    def __init__(
        self,
        split: Split,
        *,
        length: int,
        num_tokens: int,
        start_token_id: int,
        seed: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        if num_tokens <= length:
            raise ValueError(f"num_tokens={num_tokens} must exceed length={length}, for a start token")
        self.split, self.num_tokens, self.seed = split, num_tokens, seed
        self.start_token_id = start_token_id
        self.pieces = Pieces.of_split(split, length)
        self._mixture = None if weights is None else _Mixture.of(self.pieces, split, weights)
        self._begins = [0]
        self._epochs: dict[int, _Epoch] = {}

    def __getitem__(self, number: int) -> Batch:
        """Return batch `number`, counted from 0."""
        # Pieces of one length side by side share one attention call.
        chosen = sorted(self._chosen(number), key=lambda piece: -self.pieces.sizes[piece])
        tokens, prompts = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.bool_)]
        bounds = [0]
        for piece in chosen:
            begin, end = (
                int(self.pieces.begins[piece]),
                int(self.pieces.begins[piece] + self.pieces.sizes[piece]),
            )
            prompt = self.split.read_prompt(begin, end)
            if not prompt[0]:
                tokens.append(np.array([self.start_token_id]))
                prompts.append(np.array([False]))
            tokens.append(self.split.read(begin, end))
            prompts.append(prompt)
            bounds.append(bounds[-1] + len(prompt) + int(not prompt[0]))
        prompt = np.concatenate(prompts)
        return Batch(
            torch.from_numpy(np.concatenate(tokens)),
            tuple(bounds),
            torch.from_numpy(prompt) if self.split.has_prompts else None,
        )

    def num_scored(self, number: int) -> int:
        """Return how many tokens batch `number` scores, without reading it."""
        return int(self.pieces.scored[self._chosen(number)].sum())

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
        generator = np.random.default_rng((self.seed, index))
        if self._mixture is None:
            order = generator.permutation(len(self.pieces.sizes))
        else:
            order = self._mixture.draw(self.pieces, generator)
        filled = np.cumsum(self.pieces.sizes[order] + 1)
        bounds = [0]
        while bounds[-1] < len(order):
            used = int(filled[bounds[-1] - 1]) if bounds[-1] else 0
            bounds.append(int(np.searchsorted(filled, used + self.num_tokens, side="right")))
        return _Epoch(order, np.array(bounds))


@dataclass(frozen=True)
class _Mixture:
    """The pieces of each source, and how many tokens of it an epoch has."""

    members: tuple[IntArray, ...]
    num_tokens: tuple[float, ...]

    @classmethod
    def of(cls, pieces: Pieces, split: Split, weights: Sequence[float]) -> "_Mixture":
        assert split.source_ends is not None  # the shards say of which source a document is
        owner = np.searchsorted(split.source_ends, pieces.begins, side="right")
        members = tuple(np.flatnonzero(owner == source) for source in range(len(weights)))
        totals = [int(pieces.sizes[some].sum()) for some in members]
        scale = min(total / weight for total, weight in zip(totals, weights, strict=True) if total)
        return cls(
            members, tuple(min(total, weight * scale) for total, weight in zip(totals, weights, strict=True))
        )

    def draw(self, pieces: Pieces, generator: np.random.Generator) -> IntArray:
        """Return the pieces of an epoch, shuffled."""
        parts = []
        for members, wanted in zip(self.members, self.num_tokens, strict=True):
            order = generator.permutation(members)
            sizes = pieces.sizes[order]
            # A piece is in when most of it is.
            parts.append(order[np.cumsum(sizes) - sizes / 2 <= wanted])
        return generator.permutation(np.concatenate(parts))


@dataclass(frozen=True)
class _Epoch:
    """An order of pieces (P,), and where in it each batch begins: (batches + 1,)."""

    order: IntArray
    bounds: IntArray

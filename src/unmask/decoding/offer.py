"""What a draft offers at each place of a token tree: which candidate comes next, and the law that it is drawn from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.candidates import biased, draw
from unmask.decoding.options import Options
from unmask.decoding.text_law import TextLaw

Path = tuple[int, ...]
"""The candidates between the last decided token and a place."""


class Offer(ABC):
    """Candidates after every path, one after the other; `taken` are those that came before, in their order.

    Each is drawn from `law`, which is all that verification relies on. `logits`: the canvas's (L, V). `is_exact`: the
    first place has the verifier's own law.
    """

    def __init__(self, logits: Tensor, text_law: TextLaw, *, is_exact: bool) -> None:
        self._logits, self._text_law, self._is_exact = logits, text_law, is_exact

    @property
    def depth(self) -> int:
        """How many places there are."""
        return len(self._logits)

    @final
    def chance(self, path: Path, taken: Sequence[int]) -> float:
        """Return the probability of the likeliest candidate that is left, 0 when there is none; no draw enters it."""
        if self._is_exact and not path:
            return float(not taken)
        return self._most_likely(path, taken)

    @abstractmethod
    def candidate(self, path: Path, taken: Sequence[int], noise: Tensor) -> int:
        """Return the next candidate, given a uniform."""

    @abstractmethod
    def law(self, path: Path, taken: Sequence[int]) -> Tensor:
        """Return the law of the next candidate: (V,) float64."""

    @abstractmethod
    def _most_likely(self, path: Path, taken: Sequence[int]) -> float:
        """Return `chance` where the canvas proposes."""

    @final
    def _key(self, path: Path) -> Path | int:
        """Return what a law is kept by: unless they read the text, one serves all paths of a length."""
        return path if self._text_law.reads_text else len(path)


def offer_of(logits: Tensor, options: Options, text_law: TextLaw, *, is_exact: bool, most: int) -> Offer:
    """Return what a canvas with (L, V) logits offers, `most` candidates at a place.

    `is_exact`: the first place has the AR law, and its one candidate is always accepted.
    """
    if options.temperature == 0:
        return RankedOffer(logits, options, text_law, is_exact=is_exact, most=most)
    return DrawnOffer(logits, text_law, is_exact=is_exact)


class DrawnOffer(Offer):
    """Draws without replacement from a canvas's shaped laws (L, V)."""

    def __init__(self, logits: Tensor, text_law: TextLaw, *, is_exact: bool) -> None:
        super().__init__(logits, text_law, is_exact=is_exact)
        self._laws: dict[Path | int, Tensor] = {}

    def candidate(self, path: Path, taken: Sequence[int], noise: Tensor) -> int:
        law = self._left(path, taken)
        return int(draw(law, noise.to(law.device)))

    def law(self, path: Path, taken: Sequence[int]) -> Tensor:
        left = self._left(path, taken)
        return left / left.sum() if taken else left

    def _most_likely(self, path: Path, taken: Sequence[int]) -> float:
        return float(self._left(path, taken).max())

    def _left(self, path: Path, taken: Sequence[int]) -> Tensor:
        key = self._key(path)
        if key not in self._laws:
            self._laws[key] = law_after(self._text_law, self._logits[: len(path) + 1], path)
        if not taken:
            return self._laws[key]
        law = self._laws[key].clone()
        law[list(taken)] = 0.0
        return law


class RankedOffer(Offer):
    """The likeliest tokens of a canvas's laws (L, V), best first: what a greedy verifier is offered."""

    def __init__(
        self, logits: Tensor, options: Options, text_law: TextLaw, *, is_exact: bool, most: int
    ) -> None:
        super().__init__(logits, text_law, is_exact=is_exact)
        self._options = options
        self._most = min(most, logits.shape[-1])
        self._ranks: dict[Path | int, tuple[list[float], list[int]]] = {}

    def candidate(self, path: Path, taken: Sequence[int], noise: Tensor) -> int:
        return self._ranked(path)[1][len(taken)]

    def law(self, path: Path, taken: Sequence[int]) -> Tensor:
        token = torch.tensor(self._ranked(path)[1][len(taken)], device=self._logits.device)
        return F.one_hot(token, self._logits.shape[-1]).double()

    def _most_likely(self, path: Path, taken: Sequence[int]) -> float:
        chances, _ = self._ranked(path)
        return chances[len(taken)] if len(taken) < len(chances) else 0.0

    def _ranked(self, path: Path) -> tuple[list[float], list[int]]:
        key = self._key(path)
        if key not in self._ranks:
            row = biased(self._text_law.weighed(self._logits[: len(path) + 1], path), self._options)
            best = row.softmax(-1).nan_to_num(0.0).topk(self._most)
            self._ranks[key] = best.values.tolist(), best.indices.tolist()
        return self._ranks[key]


def law_after(text_law: TextLaw, logits: Tensor, path: Sequence[int]) -> Tensor:
    """Return the law after the text and a path: (n, V) logits of its places and the one after it -> (V,) float64."""
    return text_law.laws(logits if text_law.reads_text else logits[-1:], path)[-1]

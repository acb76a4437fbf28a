"""From logits to laws, from laws to tokens: the one filter and the one draw that every mode uses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import UsageError
from unmask.rng import Stream, uniforms

_USUAL_NUCLEUS = 1024
"""So many of the largest probabilities nearly always reach top-p, and are found faster than a sort of all."""


class Shaping(Protocol):
    """What shapes a model's law before a draw.

    Temperature 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing; `logit_bias` is added to tokens' logits.
    """

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...
    @property
    def logit_bias(self) -> tuple[tuple[int, float], ...]: ...


@dataclass(frozen=True)
class Shape:
    """A shaping by itself; as it stands, the model's own law. Raises UsageError for values out of range."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise UsageError(f"{self}: temperature and top_k must be 0 or more, top_p above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"{self}: min_p must be between 0 and 1")


def biased(logits: Tensor, shaping: Shaping) -> Tensor:
    """Return (..., V) logits with the shaping's bias added."""
    if not shaping.logit_bias:
        return logits
    tokens, offsets = zip(*shaping.logit_bias, strict=True)
    index = torch.tensor(tokens, device=logits.device)
    added = torch.tensor(offsets, dtype=logits.dtype, device=logits.device)
    return logits.index_add(-1, index, added.expand(*logits.shape[:-1], -1))


def sampling_law(logits: Tensor, shaping: Shaping) -> Tensor:
    """Return the law that tokens are drawn from: (..., V) logits -> (..., V) float64 probabilities.

    Bias, then temperature, then top-k, then top-p (Holtzman et al. 2019, arXiv 1904.09751), then min-p: what is less
    than so many times as probable as the likeliest token (Nguyen et al. 2024, arXiv 2407.01082); renormalised.
    Temperature 0 puts all mass on the first largest logit. Tokens that tie with the last one kept stay in too, so the
    law depends on values alone.
    """
    logits = biased(logits, shaping)
    if shaping.temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    wide = logits.double()
    wide = (wide - wide.amax(-1, keepdim=True)) / shaping.temperature
    if 0 < shaping.top_k < wide.shape[-1]:
        kth = wide.topk(shaping.top_k, dim=-1).values[..., -1:]
        wide = wide.masked_fill(wide < kth, -torch.inf)
    law = wide.softmax(-1)
    if shaping.top_p < 1:
        law = law.masked_fill(law < _nucleus_edge(law, shaping.top_p), 0.0)
    if shaping.min_p:
        law = law.masked_fill(law < shaping.min_p * law.amax(-1, keepdim=True), 0.0)
    return law / law.sum(-1, keepdim=True)


def _nucleus_edge(law: Tensor, top_p: float) -> Tensor:
    """Return the smallest probability in the smallest set of mass `top_p`, row by row: (..., V) -> (..., 1)."""
    ordered = law.topk(min(_USUAL_NUCLEUS, law.shape[-1]), dim=-1).values
    if (ordered.sum(-1) < top_p).any():
        ordered = law.sort(dim=-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    return ordered.masked_fill(before >= top_p, torch.inf).amin(-1, keepdim=True)


def draw(law: Tensor, noise: Tensor) -> Tensor:
    """Draw tokens by inverse distribution function: (..., V) laws, (...) uniforms -> (...) int64.

    Float64 throughout: a token of probability 1e-15 keeps its chance. The law need not sum to one; a token of
    probability zero is never drawn.
    """
    cumulative = law.cumsum(-1).contiguous()
    total = cumulative[..., -1:].contiguous()
    index = torch.searchsorted(cumulative, (noise[..., None] * total).contiguous(), right=True)
    last = torch.searchsorted(cumulative, total)  # the product may round up to the total
    return torch.minimum(index, last)[..., 0]


@dataclass(frozen=True)
class Keys:
    """What the noise of B canvases of L positions is keyed by, never the batch row.

    `seeds`: of each canvas. `positions`: (B, L) int64 places in the sequence. `steps`: number of the forward.
    """

    seeds: tuple[int, ...]
    positions: Tensor
    steps: tuple[int, ...]

    @classmethod
    def of_one(cls, seed: int, positions: Sequence[int], step: int) -> "Keys":
        """Return the keys of one canvas, which need not lie in one piece."""
        return cls((seed,), torch.tensor([list(positions)], dtype=torch.int64), (step,))

    def noise(self, stream: Stream) -> Tensor:
        """Return one of the independent uniforms of every position: (B, L) float64."""
        return torch.from_numpy(uniforms(self.seeds, self.positions.cpu().numpy(), self.steps, stream))


@dataclass(frozen=True)
class Candidates:
    """A proposed token for each of some positions, and what the model's law says of it: all (...), on CPU.

    The statistics are those of the softmax of the biased logits, before temperature and cuts: `confidence` is the
    probability of the proposed token, `highest` that of the most probable one, `entropy` is in nats, `margin` is
    the gap between the two largest probabilities.
    """

    tokens: Tensor
    confidence: Tensor
    highest: Tensor
    entropy: Tensor
    margin: Tensor

    def spread(self, where: Tensor) -> "Candidates":
        """Put M candidates at the M positions that (B, L) `where` marks; zeros elsewhere."""
        values = (self.tokens, self.confidence, self.highest, self.entropy, self.margin)
        blank = torch.zeros(where.shape)
        return Candidates(*(blank.to(value.dtype).masked_scatter(where, value) for value in values))


def propose(logits: Tensor, shaping: Shaping, noise: Tensor) -> Candidates:
    """Draw a candidate from each of (..., V) logits, with (...) uniforms."""
    return appraise(logits, shaping, draw(sampling_law(logits, shaping), noise.to(logits.device)))


def appraise(logits: Tensor, shaping: Shaping, tokens: Tensor) -> Candidates:
    """Return (...) tokens as candidates, with what their (..., V) logits say of them."""
    probabilities = biased(logits, shaping).softmax(
        -1, dtype=torch.promote_types(logits.dtype, torch.float32)
    )
    confidence = probabilities.gather(-1, tokens[..., None])[..., 0]
    entropy = torch.special.entr(probabilities).sum(-1)
    # A vocabulary of one token has no second best.
    first, second = F.pad(probabilities, (0, 1)).topk(2, dim=-1).values.unbind(-1)
    return Candidates(tokens.cpu(), confidence.cpu(), first.cpu(), entropy.cpu(), (first - second).cpu())

"""From logits to laws, from laws to tokens: the one filter and the one draw that every mode uses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.options import Options
from unmask.rng import Stream, uniform

_USUAL_NUCLEUS = 1024
"""So many of the largest probabilities nearly always reach top-p, and are found faster than a sort of all."""


def sampling_law(logits: Tensor, options: Options) -> Tensor:
    """Return the law that tokens are drawn from: (M, V) logits -> (M, V) float64 probabilities.

    Temperature, then top-k, then top-p (Holtzman et al. 2019, arXiv 1904.09751), renormalised. Temperature 0
    puts all mass on the first largest logit. Tokens that tie with the last one kept stay in too, so the law
    depends on values alone.
    """
    if options.temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    wide = logits.double()
    wide = (wide - wide.amax(-1, keepdim=True)) / options.temperature
    if 0 < options.top_k < wide.shape[-1]:
        kth = wide.topk(options.top_k, dim=-1).values[:, -1:]
        wide = wide.masked_fill(wide < kth, -torch.inf)
    law = wide.softmax(-1)
    if options.top_p < 1:
        law = law.masked_fill(law < _nucleus_edge(law, options.top_p), 0.0)
    return law / law.sum(-1, keepdim=True)


def _nucleus_edge(law: Tensor, top_p: float) -> Tensor:
    """Return the smallest probability in the smallest set of mass `top_p`, row by row: (M, V) -> (M, 1)."""
    ordered = law.topk(min(_USUAL_NUCLEUS, law.shape[-1]), dim=-1).values
    if (ordered.sum(-1) < top_p).any():
        ordered = law.sort(dim=-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    return ordered.masked_fill(before >= top_p, torch.inf).amin(-1, keepdim=True)


def draw(law: Tensor, noise: Tensor) -> Tensor:
    """Draw one token per row by inverse distribution function: (M, V) law, (M,) uniforms -> (M,) int64.

    Float64 throughout: a token of probability 1e-15 keeps its chance. The law need not sum to one; a token of
    probability zero is never drawn.
    """
    cumulative = law.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, noise[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the product may round up to the total
    return torch.minimum(index, last)[:, 0]


def keyed_noise(options: Options, positions: Sequence[int], step: int, stream: Stream) -> Tensor:
    """Return the uniforms of the given sequence positions at one step: (M,) float64."""
    return torch.tensor(
        [uniform(options.seed, position, step, stream) for position in positions], dtype=torch.float64
    )


@dataclass(frozen=True)
class Candidates:
    """A proposed token for each of M positions, and what the model's own law says of it: all (M,), on CPU.

    The statistics are those of the softmax of the logits, before temperature and cuts: `confidence` is the
    probability of the proposed token, `entropy` is in nats, `margin` is the gap between the two largest
    probabilities.
    """

    tokens: Tensor
    confidence: Tensor
    entropy: Tensor
    margin: Tensor


def propose(logits: Tensor, options: Options, positions: Sequence[int], step: int) -> Candidates:
    """Draw a candidate at each of M positions from its (M, V) logits; `step` is the key of its noise."""
    noise = keyed_noise(options, positions, step, Stream.TOKEN).to(logits.device)
    tokens = draw(sampling_law(logits, options), noise)
    probabilities = logits.float().softmax(-1)
    confidence = probabilities.gather(-1, tokens[:, None])[:, 0]
    entropy = torch.special.entr(probabilities).sum(-1)
    # A vocabulary of one token has no second best.
    best = F.pad(probabilities, (0, 1)).topk(2, dim=-1).values
    return Candidates(tokens.cpu(), confidence.cpu(), entropy.cpu(), (best[:, 0] - best[:, 1]).cpu())

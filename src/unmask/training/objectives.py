"""What a model trained from scratch, or converted as a whole, learns: next tokens, denoising, or both at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.masked import Masked
from unmask.diffusion.objective import Weighting, token_losses
from unmask.diffusion.process import Process
from unmask.diffusion.times import LowDiscrepancy, Noised, TimeSampling
from unmask.errors import UsageError
from unmask.model.denoiser import Denoiser
from unmask.training.batches import Batch
from unmask.training.loss import LossSum
from unmask.training.streams import Cuts, Streams, causal_stream, noisy_stream, two_streams

NEXT_TOKEN, DIFFUSION = "ar", "diffusion"
"""The names of the two losses."""


@dataclass(frozen=True)
class NoiseConfig:
    """How canvases are noised and scored.

    `cuts`: into blocks, each of which sees the clean text before it; `None` for whole pieces both ways, without a clean
    stream. `belief_share`: share of the batches in which the denoiser sees its own first prediction.
    `weight`: of the diffusion loss. `complementary`: noise every block twice, masked tokens of the one copy being the
    clean ones of the other, so that each token is learnt from once (Fast-dLLM v2, arXiv 2509.26328); masked noise only.
    `end_token_id`: an answer that closes with it is followed by more of it, up to the end of its last block, and these
    are learnt too: so decoding finds what lies behind the end of a text on its canvas.
    """

    process: Process
    cuts: Cuts | None = None
    times: TimeSampling = field(default_factory=LowDiscrepancy)
    weighting: Weighting = "bound"
    belief_share: float = 0.0
    weight: float = 1.0
    complementary: bool = False
    end_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.complementary and not isinstance(self.process, Masked):
            raise UsageError(
                f"complementary noise: {type(self.process).__name__} noise has no masks to complement",
                "use process 'masked'",
            )


@dataclass(frozen=True)
class Objective:
    """The losses of one forward over packed pieces of text.

    `next_token`: train the causal stream. `noise`: train the denoiser. Both: the joint objective, in which the clean
    stream of ``[clean | noisy]`` serves the one and the noisy stream the other (Nemotron-Labs-Diffusion, arXiv
    2607.05722). Either way every token that is not given is scored once by each loss; what fills the last block of an
    answer adds to the diffusion loss, and to no count.
    """

    denoiser: Denoiser
    next_token: bool
    noise: NoiseConfig | None

    def __post_init__(self) -> None:
        if not self.next_token and self.noise is None:
            raise ValueError("an objective trains next tokens, denoising, or both")
        if self.next_token and self.noise is not None and self.noise.cuts is None:
            raise ValueError("next tokens need a clean stream, from which noisy blocks are cut")

    def __call__(self, batch: Batch, generator: torch.Generator) -> Mapping[str, LossSum]:
        """Score a batch: for each loss by name the sum in nats, and the number of tokens it is over."""
        streams = self._streams(batch, generator)
        if self.noise is None or not len(streams.noisy):
            return {
                NEXT_TOKEN: self._score_next(self._run(batch.tokens, streams, None, None), batch, streams)
            }
        noised = self._corrupt(batch, streams, self.noise, generator)
        belief = None
        draw = torch.rand((), generator=generator, device=generator.device)
        if draw.item() < self.noise.belief_share:
            with torch.no_grad():
                hidden = self._run(batch.tokens, streams, noised, None)
                belief = self._logits(hidden[streams.noisy]).softmax(-1)
        hidden = self._run(batch.tokens, streams, noised, belief)
        losses = {DIFFUSION: self._score_noisy(hidden, batch, streams, noised, self.noise)}
        if self.next_token:
            losses[NEXT_TOKEN] = self._score_next(hidden, batch, streams)
        return losses

    def _streams(self, batch: Batch, generator: torch.Generator) -> Streams:
        noise = self.noise
        if noise is None:
            return causal_stream(batch.bounds)
        copies = 2 if noise.complementary else 1
        if noise.cuts is None:
            return noisy_stream(batch.bounds, copies=copies)
        return two_streams(batch, noise.cuts, generator, copies=copies, end_token_id=noise.end_token_id)

    def _corrupt(
        self, batch: Batch, streams: Streams, noise: NoiseConfig, generator: torch.Generator
    ) -> Noised:
        """Noise the noisy stream, block by block: fields (M,)."""
        # Blocks become the rows of a matrix, padded on the right.
        inside = streams.inside
        clean = batch.tokens.new_zeros(inside.shape)
        clean[inside] = batch.tokens[streams.source]
        trained = torch.zeros_like(clean, dtype=torch.bool)
        trained[inside] = ~batch.given[streams.source]
        noised = noise.times.noise(clean, noise.process, generator, trained=trained)
        if noise.complementary:
            noised = _complemented(noised, clean, streams.twin, noise.process)
        return noised.at(inside)

    def _run(self, tokens: Tensor, streams: Streams, noised: Noised | None, belief: Tensor | None) -> Tensor:
        """Run both streams in one forward: (N + M, D)."""
        denoiser = self.denoiser
        if noised is None:
            return denoiser.transformer(denoiser.embed(tokens), streams.layout)  # type: ignore[no-any-return]
        inputs = denoiser.embed_noisy(noised.tokens, noised.time, belief)
        if len(streams.clean):
            both = torch.cat([denoiser.embed(tokens), inputs])
            inputs = both[torch.cat([streams.clean, streams.noisy]).argsort()]
        return denoiser.transformer(inputs, streams.layout, None, denoiser.adapter)  # type: ignore[no-any-return]

    def _logits(self, hidden: Tensor) -> Tensor:
        """(M, D) -> (M, K): a mask token that ends the vocabulary is no token of a text."""
        return self.denoiser.transformer.logits(hidden)[:, : self.denoiser.vocab_size]

    def _score_next(self, hidden: Tensor, batch: Batch, streams: Streams) -> LossSum:
        target = (~batch.given).nonzero()[:, 0].cpu()
        logits = self._logits(hidden[streams.clean[target - 1]])
        return LossSum(F.cross_entropy(logits, batch.tokens[target], reduction="sum"), len(target))

    def _score_noisy(
        self, hidden: Tensor, batch: Batch, streams: Streams, noised: Noised, noise: NoiseConfig
    ) -> LossSum:
        # Under masked noise only masks have a term, and only they need logits.
        scored = noised.trained
        if isinstance(noise.process, Masked):
            scored = scored & noise.process.is_masked(noised.tokens)
        index = scored.nonzero()[:, 0].cpu()
        losses = token_losses(
            self._logits(hidden[streams.noisy[index]]),
            batch.tokens[streams.source[index]],
            noised.at(index),
            noise.process,
            weighting=noise.weighting,
        )
        copies = 2 if noise.complementary else 1
        return LossSum(losses.sum() / copies, batch.num_scored, noise.weight)


def _complemented(noised: Noised, clean: Tensor, twin: Tensor, process: Process) -> Noised:
    """Make every second copy of a row the complement of its `twin` (rows,): masked where that one is clean."""
    first = noised.trained & process.is_masked(noised.tokens[twin])
    is_second = (twin != torch.arange(len(twin)))[:, None]
    mask = process.mask_token_id
    assert mask is not None
    complement = torch.where(noised.trained & ~first, mask, clean)
    # Kept with 1 - alpha where the other is kept with alpha.
    time = process.schedule.time_of(1 - process.schedule.alpha(noised.time[twin]))
    weight = noised.weight
    if weight is not None:
        # By exact counts k of n the copies have k and n - k masks: both reach every count but n, which the first
        # one reaches alone and must answer for twice.
        size, count = (part.sum(-1, keepdim=True) for part in (noised.trained, noised.trained & ~first))
        weight = torch.where(is_second, size / count.clamp_min(1), weight * torch.where(count == 0, 2, 1))
    return Noised(
        torch.where(is_second, complement, noised.tokens),
        torch.where(is_second, time, noised.time),
        noised.trained,
        weight,
    )

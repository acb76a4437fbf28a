"""What a model trained from scratch, or converted as a whole, learns: next tokens, denoising, or both at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.objective import Weighting, token_losses
from unmask.diffusion.process import Process
from unmask.diffusion.times import LowDiscrepancy, Noised, TimeSampling
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
    `weight`: of the diffusion loss.
    """

    process: Process
    cuts: Cuts | None = None
    times: TimeSampling = field(default_factory=LowDiscrepancy)
    weighting: Weighting = "bound"
    belief_share: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class Objective:
    """The losses of one forward over packed pieces of text; the first token of each piece is given.

    `next_token`: train the causal stream. `noise`: train the denoiser. Both: the joint objective, in which the clean
    stream of ``[clean | noisy]`` serves the one and the noisy stream the other (Nemotron-Labs-Diffusion, arXiv
    2607.05722). Either way every token after the first of a piece is scored once by each loss.
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
        tokens, bounds = batch.tokens, batch.bounds
        streams = self._streams(bounds, generator)
        if self.noise is None or not len(streams.noisy):
            return {
                NEXT_TOKEN: self._score_next(self._run(tokens, streams, None, None), tokens, bounds, streams)
            }
        noised, given = self._corrupt(tokens, streams, self.noise, generator)
        belief = None
        if torch.rand((), generator=generator).item() < self.noise.belief_share:
            with torch.no_grad():
                hidden = self._run(tokens, streams, noised, None)
                belief = self._logits(hidden[streams.noisy]).softmax(-1)
        hidden = self._run(tokens, streams, noised, belief)
        losses = {DIFFUSION: self._score_noisy(hidden, tokens, streams, noised, given, self.noise)}
        if self.next_token:
            losses[NEXT_TOKEN] = self._score_next(hidden, tokens, bounds, streams)
        return losses

    def _streams(self, bounds: Sequence[int], generator: torch.Generator) -> Streams:
        if self.noise is None:
            return causal_stream(bounds)
        if self.noise.cuts is None:
            return noisy_stream(bounds)
        return two_streams(bounds, self.noise.cuts, generator)

    def _corrupt(
        self, tokens: Tensor, streams: Streams, noise: NoiseConfig, generator: torch.Generator
    ) -> tuple[Noised, Tensor]:
        """Noise the noisy stream, block by block: fields (M,), and which of its tokens are given, (M,) bool."""
        # Blocks become the rows of a matrix, padded on the right.
        sizes = torch.bincount(streams.group, minlength=streams.num_groups)
        inside = torch.arange(int(sizes.max()))[None] < sizes[:, None]
        clean = tokens.new_zeros(inside.shape)
        clean[inside] = tokens[streams.source]
        given = torch.zeros(len(streams.source), dtype=torch.bool)
        if not len(streams.clean):
            given[torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)[:-1]])] = True
        trained = inside.clone()
        trained[inside] = ~given
        return noise.times.noise(clean, noise.process, generator, trained=trained).at(inside), given

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

    def _score_next(self, hidden: Tensor, tokens: Tensor, bounds: Sequence[int], streams: Streams) -> LossSum:
        follows = torch.ones(len(tokens), dtype=torch.bool)
        follows[list(bounds[:-1])] = False
        target = follows.nonzero()[:, 0]
        logits = self._logits(hidden[streams.clean[target - 1]])
        return LossSum(F.cross_entropy(logits, tokens[target], reduction="sum"), len(target))

    def _score_noisy(
        self,
        hidden: Tensor,
        tokens: Tensor,
        streams: Streams,
        noised: Noised,
        given: Tensor,
        noise: NoiseConfig,
    ) -> LossSum:
        # Under masked noise only masks have a term, and only they need logits.
        open_ = noised.trained
        if noise.process.masks and noise.process.prediction == "posterior":
            open_ = open_ & noise.process.is_masked(noised.tokens)
        index = open_.nonzero()[:, 0]
        losses = token_losses(
            self._logits(hidden[streams.noisy[index]]),
            tokens[streams.source[index]],
            noised.at(index),
            noise.process,
            weighting=noise.weighting,
        )
        return LossSum(losses.sum(), int((~given).sum()), noise.weight)

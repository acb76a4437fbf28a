"""How probable continuations are to a denoiser: by a bound, or exactly under a rule that says what comes when."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

import torch
from torch import Tensor

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import DEFAULT_RULE, Options
from unmask.diffusion.gaussian import Gaussian, GaussianDenoiser, Reconsidered
from unmask.diffusion.process import Process
from unmask.errors import UsageError
from unmask.evaluation.canvas_after import CanvasAfter
from unmask.evaluation.canvas_blocks import CanvasBlocks
from unmask.evaluation.continuations import Continuation, Likelihood
from unmask.evaluation.gaussian_likelihood import flow_likelihood, gaussian_bound
from unmask.evaluation.likelihood import Estimate, block_bound, bound, duel_nll
from unmask.evaluation.scoring import LogLikelihood
from unmask.model.denoiser import Denoiser


@dataclass(frozen=True)
class Bound:
    """Minus the mean of `num_samples` draws of the bound on -log p: an unbiased estimate of a lower bound on log p.

    Block by block after the context; a full-attention model has the whole continuation as its one block. Every
    continuation draws noise of its own, by its tokens. A self-conditioned model of continuous noise takes two forwards
    for a draw.
    """

    law: ClassVar[str] = "an upper bound on the nats"
    num_samples: int = 32

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise UsageError(f"likelihood 'bound': num_samples={self.num_samples} must be at least 2")

    def prepare(self, model: LanguageModel, options: Options) -> Likelihood:
        """Refuse a model without noise."""
        if model.denoiser.vectors is not None:
            return self._continuous(model, options)
        process, card = _process(model, "bound"), model.checkpoint.card
        block_length = options.block_length or card.block_length

        def whole(each: Continuation) -> Estimate:
            return bound(
                model.denoiser.whole,
                _row(each),
                process,
                _generator(options, each),
                num_samples=self.num_samples,
                scored=_scored(each),
            )

        if model.denoiser.full_attention:
            return _estimated(whole)
        blocks = CanvasBlocks(model.denoiser)

        def by_blocks(each: Continuation) -> Estimate:
            return block_bound(
                blocks,
                _row(each),
                process,
                block_length,
                _generator(options, each),
                num_samples=self.num_samples,
                num_given=len(each.tokens) - each.num_scored,
            )

        return _estimated(by_blocks)

    def _continuous(self, model: LanguageModel, options: Options) -> Likelihood:
        denoiser, process = gaussian_denoiser(model.denoiser)
        device = model.denoiser.transformer.device

        def whole(each: Continuation) -> Estimate:
            return gaussian_bound(
                denoiser,
                _row(each).to(device),
                process,
                _generator(options, each),
                num_samples=self.num_samples,
                scored=_scored(each).to(device),
            )

        return _estimated(whole)


@dataclass(frozen=True)
class Flow:
    """Minus the mean of `num_samples` draws of -log p under the deterministic sampler of a continuous model.

    The probability flow in `num_steps` steps of four forwards and backwards each (see `flow_likelihood`); the whole
    continuation at once. Every continuation draws noise of its own, by its tokens.
    """

    law: ClassVar[str] = "the probability flow's own, up to its finite steps"
    num_steps: int = 16
    num_samples: int = 2

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("num_samples", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UsageError(
                    f"likelihood 'flow': {name}={value} must be a whole number of at least {least}"
                )

    def prepare(self, model: LanguageModel, options: Options) -> Likelihood:
        """Refuse a model whose noise is on tokens."""
        if model.denoiser.vectors is None:
            raise UsageError(
                "likelihood 'flow': this model's noise is on tokens, which nothing flows through",
                "leave it out, or choose a continuous model",
            )
        if model.quantize is not None:
            raise UsageError(f"likelihood 'flow': {model.quantize} has no gradients", "leave quantize out")
        plain = LanguageModel(model.checkpoint).denoiser  # weights laid out for inference have none either
        denoiser, process = gaussian_denoiser(plain)
        device = plain.transformer.device

        def whole(each: Continuation) -> Estimate:
            return flow_likelihood(
                denoiser,
                _row(each).to(device),
                process,
                _generator(options, each),
                num_steps=self.num_steps,
                num_samples=self.num_samples,
                scored=_scored(each).to(device),
            )

        return _estimated(whole)


@dataclass(frozen=True)
class Duel:
    """Exactly, under the options' rule where it chooses positions before their tokens are drawn (see `duel_nll`).

    Block by block after the context, or, with full attention, over the whole continuation; `num_steps` for each. The
    law is the model's own, whatever the temperature.
    """

    law: ClassVar[str] = "exact under the rule"

    def prepare(self, model: LanguageModel, options: Options) -> Likelihood:
        """Refuse a model without a mask token."""
        process, card = _process(model, "duel"), model.checkpoint.card
        rule, block_length = options.rule or DEFAULT_RULE, options.block_length or card.block_length

        def whole(each: Continuation) -> float:
            seeds = (_seed(options, each),)
            steps = options.num_steps or each.num_scored
            denoiser, scored = model.denoiser.whole, _scored(each)
            duel = duel_nll(denoiser, process, _row(each), rule, seeds=seeds, steps=steps, scored=scored)
            return float(duel.nats)

        def by_blocks(each: Continuation) -> float:
            context, seeds, nats = each.tokens[: -each.num_scored], (_seed(options, each),), 0.0
            canvas = CanvasAfter(model.denoiser, context, capacity=len(each.tokens))
            for start in range(0, each.num_scored, block_length):
                block = each.scored[start : start + block_length]
                duel = duel_nll(
                    canvas, process, torch.tensor([block]), rule, seeds=seeds, steps=options.num_steps
                )
                nats += float(duel.nats)
                canvas.extend(block)
            return nats

        return _each(whole if model.denoiser.full_attention else by_blocks)


def gaussian_denoiser(denoiser: Denoiser) -> tuple[GaussianDenoiser, Gaussian]:
    """Return a continuous model as likelihoods see it, with its own first answer for a belief where it takes one."""
    informed, ports = denoiser.informed(), denoiser.conditioning
    has_belief = ports is not None and ports.belief is not None
    return (Reconsidered(informed) if has_belief else informed), informed.process


def _each(nats: Callable[[Continuation], float]) -> Likelihood:
    """Measure -log p one continuation after the other; nothing is known of what greedy decoding would write."""

    def likelihood(continuations: Sequence[Continuation]) -> list[LogLikelihood]:
        return [LogLikelihood(-nats(each), None, each.num_scored) for each in continuations]

    return likelihood


def _estimated(estimate: Callable[[Continuation], Estimate]) -> Likelihood:
    """Estimate a bound on -log p one continuation after the other, with its standard error."""

    def one(each: Continuation) -> LogLikelihood:
        found = estimate(each)
        error = float(found.standard_error)
        return LogLikelihood(-float(found.mean), None, each.num_scored, standard_error=error)

    return lambda continuations: [one(each) for each in continuations]


def _process(model: LanguageModel, likelihood: str) -> Process:
    denoiser = model.denoiser
    if denoiser.vectors is not None:
        raise UsageError(f"likelihood {likelihood!r}: this model's noise is Gaussian", "choose 'bound'")
    if denoiser.process is None or (denoiser.mask_token_id is None and not denoiser.full_attention):
        raise UsageError(
            f"likelihood {likelihood!r}: this model has no mask token",
            "choose 'ar', or convert it first"
            if denoiser.predicts_next
            else "choose a model of masked noise",
        )
    return denoiser.process if denoiser.full_attention else CanvasBlocks(denoiser).process


def _row(each: Continuation) -> Tensor:
    return torch.tensor([each.tokens])


def _scored(each: Continuation) -> Tensor:
    return (torch.arange(len(each.tokens)) >= len(each.tokens) - each.num_scored)[None]


def _seed(options: Options, each: Continuation) -> int:
    digest = sha256(repr((each.tokens, each.num_scored)).encode()).digest()
    return options.seed ^ int.from_bytes(digest[:4])


def _generator(options: Options, each: Continuation) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(options, each))

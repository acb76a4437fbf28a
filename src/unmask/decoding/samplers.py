"""The samplers: ancestral, predictor-corrector, remasking, unmasking by a rule, renoising."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.candidates import Shape
from unmask.decoding.decision import Confidence, decide
from unmask.decoding.gaussian_samplers import GAUSSIAN_SAMPLERS, GaussianSampler
from unmask.decoding.rules import RULES, EntropyBound, Rule
from unmask.decoding.sampler import Kernel, Look, Move, Sampler, Step, share_time
from unmask.diffusion.masked import Masked
from unmask.diffusion.process import Process
from unmask.diffusion.schedule import Schedule
from unmask.diffusion.uniform import Uniform
from unmask.errors import UsageError
from unmask.registry import Registry, unknown_name
from unmask.rng import Stream

_LEAST = 1e-30


SAMPLERS: Registry[type[Sampler]] = Registry("sampler", group="unmask.samplers")
"""Sampler classes by the name that `parse_sampler` knows them by; each is a dataclass of numbers with defaults."""


def parse_sampler(text: str) -> Sampler | GaussianSampler:
    """Build what a text such as ``ancestral`` or ``euler`` means; a rule's text means unmasking by that rule.

    What both kinds of noise have is the sampler of tokens (`gaussian_sampler` makes it the other). Raises UsageError
    for a name that nobody knows, and for wrong numbers.
    """
    name = text.partition(":")[0]
    if name in SAMPLERS.names():
        return SAMPLERS.parse(text)
    if name in RULES.names():
        return Unmask(RULES.parse(text))
    if name in GAUSSIAN_SAMPLERS.names():
        return GAUSSIAN_SAMPLERS.parse(text)
    raise unknown_name(
        "sampler or rule", name, (*SAMPLERS.names(), *RULES.names(), *GAUSSIAN_SAMPLERS.names())
    )


def _ancestral_law(look: Look) -> Tensor:
    prediction = look.predict(look.process.prediction)
    return look.process.posterior(prediction, look.tokens, look.next_time, look.time)


@SAMPLERS.register("ancestral")
@final
@dataclass(frozen=True)
class Ancestral(Kernel):
    """Undo the noise step by step with the process's own posterior: the data's law, in the limit of many steps."""

    def check(self, process: Process) -> None:
        """Fit every process."""

    def law(self, look: Look) -> Tensor:
        return _ancestral_law(look)

    def noisy(self, look: Look, tokens: Tensor) -> Tensor:
        if isinstance(look.process, Masked):
            return look.free & look.process.is_masked(tokens)
        return super().noisy(look, tokens)


@SAMPLERS.register("predictor-corrector")
@final
@dataclass(frozen=True)
class PredictorCorrector(Kernel):
    """Walk every ancestral step down, and then `rounds` times up again by fresh noise and down once more.

    Up is the process's own kernel and down its posterior, so every round keeps the law of its time as well as a step
    does, and wrong tokens get another chance (Campbell et al. 2022, arXiv 2205.14987, with finite steps).
    Forwards that do not make whole rounds are spent on the last step.
    """

    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"sampler 'predictor-corrector': rounds={self.rounds} must be at least 1")

    def check(self, process: Process) -> None:
        """Fit every process."""

    def moves(self, steps: int, schedule: Schedule) -> list[Move]:
        walks = 1 + self.rounds
        even = super().moves(max(1, steps // walks), schedule)
        repeated = [move for move in even for _ in range(walks)]
        return repeated[:steps] + even[-1:] * (steps - len(repeated))

    def law(self, look: Look) -> Tensor:
        return _ancestral_law(look)


class Remasking(Kernel):
    """Ancestral unmasking that masks a clean token again with probability sigma, and reveals as many more.

    The law of every x_s given x_0 stays what it was (Wang et al. 2025, ReMDM, arXiv 2503.00307), if sigma is
    one number for all tokens.
    """

    @abstractmethod
    def sigma(self, look: Look, most: Tensor) -> Tensor:
        """Return the chance to be masked again, at `most` (B, 1): broadcasts to (B, L)."""

    @final
    def check(self, process: Process) -> None:
        if not isinstance(process, Masked):
            raise _misfit(self, process, "it masks tokens again, so it needs masked noise")

    @final
    def law(self, look: Look) -> Tensor:
        early, late = (look.process.schedule.alpha(time) for time in (look.next_time, look.time))
        sigma = self.sigma(look, ((1 - early) / late.clamp_min(_LEAST)).clamp_max(1)).expand(
            look.tokens.shape
        )
        reveal = ((early - (1 - sigma) * late) / (1 - late))[..., None]
        law = F.pad(
            look.predict("posterior").exp() * reveal, (0, look.process.num_states - look.logits.shape[-1])
        )
        mask = F.one_hot(torch.tensor(look.process.mask_token_id, device=law.device), law.shape[-1]).double()
        kept = F.one_hot(look.tokens, law.shape[-1]) * (1 - sigma[..., None]) + mask * sigma[..., None]
        return torch.where(look.process.is_masked(look.tokens)[..., None], law + mask * (1 - reveal), kept)


@SAMPLERS.register("remdm-cap")
@final
@dataclass(frozen=True)
class CappedRemasking(Remasking):
    """Mask again with probability `eta`, or what the marginals allow."""

    eta: float = 0.02

    def __post_init__(self) -> None:
        _require_share("remdm-cap", "eta", self.eta)

    def sigma(self, look: Look, most: Tensor) -> Tensor:
        return most.clamp_max(self.eta)


@SAMPLERS.register("remdm-rescale")
@final
@dataclass(frozen=True)
class RescaledRemasking(Remasking):
    """Mask again with a share `eta` of the greatest probability that the marginals allow."""

    eta: float = 0.02

    def __post_init__(self) -> None:
        _require_share("remdm-rescale", "eta", self.eta)

    def sigma(self, look: Look, most: Tensor) -> Tensor:
        return most * self.eta


@SAMPLERS.register("remdm-conf")
@final
@dataclass(frozen=True)
class ConfidenceRemasking(Remasking):
    """Mask about one token of a canvas again, rather one of low confidence: softmax(-confidence) of the greatest sigma.

    As sigma is not the same for all, the marginals are kept approximately only.
    """

    def sigma(self, look: Look, most: Tensor) -> Tensor:
        clean = look.free & ~look.process.is_masked(look.tokens)
        weights = (-look.confidence.double()).exp() * clean
        return most * weights / weights.sum(-1, keepdim=True).clamp_min(_LEAST)


@SAMPLERS.register("remdm-loop")
@final
@dataclass(frozen=True)
class LoopedRemasking(Remasking):
    """Unmask to the level `alpha`, stay there and revise, then finish; `eta` caps sigma while staying.

    A share `first` of the forwards goes into reaching the level and a share `last` into finishing.
    """

    eta: float = 0.02
    alpha: float = 0.9
    first: float = 0.45
    last: float = 0.05

    def __post_init__(self) -> None:
        for field in ("eta", "alpha", "first", "last"):
            _require_share("remdm-loop", field, getattr(self, field))
        if self.alpha == 1 or self.first + self.last > 1:
            raise UsageError(f"{self}: alpha must be below 1, and first and last at most 1 together")

    def moves(self, steps: int, schedule: Schedule) -> list[Move]:
        level = float(schedule.time_of(torch.tensor(self.alpha, dtype=torch.float64)))
        last = max(1, round(self.last * steps))
        first = min(round(self.first * steps), steps - last)
        times = torch.cat(
            [
                torch.linspace(1, level, first + 1, dtype=torch.float64),
                torch.full((steps - first - last,), level, dtype=torch.float64),
                torch.linspace(level, 0, last + 1, dtype=torch.float64)[1:],
            ]
        ).tolist()
        return [Move(t, s) for t, s in pairwise(times)]

    def sigma(self, look: Look, most: Tensor) -> Tensor:
        return most.clamp_max(self.eta) * (look.time == look.next_time)


@final
@dataclass(frozen=True)
class Unmask(Sampler):
    """Decide masked positions for good, in the order of a rule. `confidence`: whose probability the rule sees.

    The denoiser is told the time at which as many tokens would be masked. A rule that decides early needs fewer
    forwards; one that does not is made to finish in time.
    """

    rule: Rule
    confidence: Confidence = "drawn"

    @property
    def memory(self) -> int:
        return self.rule.memory

    def check(self, process: Process) -> None:
        if not isinstance(process, Masked):
            raise _misfit(self, process, "a rule decides masked positions, so it needs masked noise")

    def time(self, process: Process, noisy: Tensor, free: Tensor, move: Move) -> Tensor:
        return share_time(process, noisy, free)

    def step(self, look: Look) -> Step:
        is_open = look.free & look.process.is_masked(look.tokens)
        decision = decide(
            self.rule,
            look.logits,
            is_open,
            look.shape,
            look.keys,
            steps_left=(look.steps_left,) * len(is_open),
            changes=look.changes,
            confidence=self.confidence,
        )
        chosen, drawn = (
            part.to(look.tokens.device) for part in (decision.chosen, decision.candidates.tokens)
        )
        noisy = is_open & ~chosen
        return Step(torch.where(chosen, drawn, look.tokens), noisy, ~noisy.any(-1))


@SAMPLERS.register("renoise")
@final
@dataclass(frozen=True)
class Renoise(Sampler):
    """Accept the most certain tokens of a uniform canvas, replace all others by fresh uniform noise, and look again.

    Accepted are the positions whose entropies, without the largest, add up to at most `gamma` nats. No acceptance is
    final. The temperature falls from `hot` to `cold` over the forwards. A canvas is finished when the most probable
    tokens have been the same for `window` forwards more and their mean entropy is below `calm` nats, or at the last
    forward; it then gets its most probable tokens (DiffusionGemma, arXiv 2608.00146).
    """

    gamma: float = 0.1
    hot: float = 0.8
    cold: float = 0.4
    window: int = 2
    calm: float = 0.05

    def __post_init__(self) -> None:
        for field in ("gamma", "hot", "cold", "window", "calm"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UsageError(
                    f"sampler 'renoise': {field}={getattr(self, field)} must be 0 or more and finite"
                )

    def check(self, process: Process) -> None:
        if not isinstance(process, Uniform):
            raise _misfit(self, process, "it replaces tokens by uniform ones, so it needs uniform noise")

    def time(self, process: Process, noisy: Tensor, free: Tensor, move: Move) -> Tensor:
        # Half a position stays in doubt: at time 0 a canvas accepted as a whole could never be revised.
        return share_time(process, noisy, free, doubt=0.5)

    def step(self, look: Look) -> Step:
        law = look.predict("posterior", temperature=self.cold + (self.hot - self.cold) * look.move.t)
        decision = decide(
            EntropyBound(self.gamma),
            law,
            look.free,
            Shape(),
            look.keys,
            steps_left=(None,) * len(look.tokens),
            changes=torch.zeros(*look.tokens.shape, 0),
        )
        chosen, drawn, entropy = (
            part.to(look.tokens.device)
            for part in (decision.chosen, decision.candidates.tokens, decision.candidates.entropy)
        )
        fresh = (look.noise(Stream.CORRUPTION) * look.process.vocab_size).long()
        is_steady = ((look.steady >= self.window) | ~look.free).all(-1)
        is_calm = entropy.sum(-1) < self.calm * look.free.sum(-1)
        finished = (is_steady & is_calm) | torch.tensor(look.steps_left == 1, device=is_calm.device)
        tokens = torch.where(chosen, drawn, fresh).where(~finished[:, None], law.argmax(-1))
        return Step(tokens, look.free & ~chosen & ~finished[:, None], finished)


def _misfit(sampler: Sampler, process: Process, reason: str) -> UsageError:
    return UsageError(f"{sampler} does not fit the process {type(process).__name__}: {reason}")


def _require_share(sampler: str, field: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"sampler {sampler!r}: {field}={value!r} must be between 0 and 1")

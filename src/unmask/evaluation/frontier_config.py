"""What a frontier measures: the ways to decode, and how much of each."""

from dataclasses import dataclass, replace

from unmask.decoding.language_model import LanguageModel
from unmask.errors import UsageError
from unmask.evaluation.prompts import first_prompts
from unmask.evaluation.ways import Way, takes_rules
from unmask.model.denoiser import Denoiser

DEFAULT_RULES = (
    *(f"threshold:{tau}" for tau in (0.99, 0.9, 0.7, 0.5, 0.3)),
    *(f"entropy-bound:{gamma}" for gamma in (0.01, 0.1, 0.5, 2)),
    *(f"factor:{factor}" for factor in (0.5, 1, 2)),
    *("klass:0.9,0.01,2", "klass:0.7,0.1,1"),
    *(f"{rule}:{k}" for rule in ("top-k", "margin", "random", "left-to-right") for k in (1, 2, 4)),
    *("spaced:2", "spaced:1.5"),
)
DEFAULT_STEPS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class FrontierConfig:
    """All that decides a frontier but the models; UsageError for values out of range.

    `rules`: of mode diffusion. `samplers`: each at every number of `steps` a block; of a model that no rule decodes its
    own sampler, unless given. Every way is measured at each of the `temperatures`; of several one must be 1, where the
    model has mode ar, for at its entropy all are compared. `lengths`: of texts whose time is
    taken, on one prompt of each kind; none for none.
    """

    num_prompts: int = 2
    max_tokens: int = 64
    block_length: int | None = None
    rules: tuple[str, ...] = ()
    samplers: tuple[str, ...] = ()
    steps: tuple[int, ...] = DEFAULT_STEPS
    temperatures: tuple[float, ...] = (0.0,)
    limit: int = 20
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        first_prompts(self.num_prompts)
        for name, least in (("steps", 1), ("temperatures", 0), ("lengths", 1)):
            if any(value < least for value in getattr(self, name)):
                raise UsageError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.temperatures or not self.steps:
            raise UsageError("temperatures and steps need at least one value each")
        if self.max_tokens < 1 or self.limit < 1:
            raise UsageError(f"max_tokens={self.max_tokens} and limit={self.limit} must be at least 1")

    def ways(self, model: LanguageModel) -> tuple[Way, ...]:
        """Return every way to decode, the reference modes of the model first; UsageError without the reference."""
        denoiser = model.denoiser
        if denoiser.predicts_next and len(set(self.temperatures)) > 1 and 1 not in self.temperatures:
            raise UsageError(
                f"temperatures={self.temperatures}: ways are compared at the entropy of mode ar at temperature 1",
                "give 1 too, or a single temperature",
            )
        has_rules = takes_rules(denoiser)
        rules = self.rules or (DEFAULT_RULES if has_rules and not self.samplers else ())
        samplers = self.samplers or (() if rules else (_own_sampler(denoiser),))
        some = [Way("diffusion", rule=rule, block_length=self.block_length) for rule in rules]
        some += [
            Way("diffusion", sampler=sampler, block_length=self.block_length, num_steps=steps)
            for sampler in samplers
            for steps in self.steps
        ]
        if denoiser.predicts_next:
            modes = [Way("ar")]
            if has_rules:
                modes.append(Way("speculative", block_length=self.block_length))
            some = modes + some
        return tuple(replace(way, temperature=heat) for heat in self.temperatures for way in some)


def _own_sampler(denoiser: Denoiser) -> str:
    """Return the text of the sampler of a model that no rule decodes; UsageError for a model without noise."""
    if denoiser.vectors is None and denoiser.process is None:
        raise UsageError("this model has no diffusion mode", "convert it first")
    return "ancestral" if denoiser.vectors is None else "multistep"

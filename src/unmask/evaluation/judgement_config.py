"""The settings of a judgement, checked before a model is loaded."""

from dataclasses import dataclass

from unmask.errors import UsageError
from unmask.evaluation.prompts import first_prompts
from unmask.evaluation.trials import AR, Setting, Which
from unmask.evaluation.ways import require_room
from unmask.model.checkpoint import Precision
from unmask.model.quantize import Quantisation


@dataclass(frozen=True)
class JudgementConfig:
    """All that decides a judgement; raises UsageError naming what is wrong.

    `model` may be the folder of a run. `base`: what it was before, unless its card says so. `against`: an adapter
    folder, or "untrained", for the model to be compared with. `num_prompts`: of each kind; the first `num_timed` of
    each run alone, and only the first `num_diffusion` in mode diffusion. `text_tokens`: taken from each of `texts`.
    `thresholds`: of mode diffusion, at the model's own block length.
    """

    model: str
    adapter: str | None = None
    base: str | None = None
    against: str | None = None
    num_prompts: int = 5
    num_timed: int = 2
    num_diffusion: int = 10
    max_tokens: int = 48
    block_lengths: tuple[int, ...] = (8, 16)
    thresholds: tuple[float, ...] = (0.9, 0.7, 0.5)
    texts: tuple[str, ...] = ()
    text_tokens: int = 8192
    seed: int = 0
    dtype: Precision = "float32"
    device: str = "cpu"
    quantize: Quantisation | None = None

    def __post_init__(self) -> None:
        first_prompts(self.num_prompts)
        require_room(self.max_tokens, self.block_lengths)
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise UsageError(f"thresholds={self.thresholds} must lie in [0, 1]")
        for name, least in (("num_timed", 0), ("num_diffusion", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.text_tokens < 32:
            raise UsageError(f"text_tokens={self.text_tokens} must be at least 32")

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every way in which prompts are decoded."""
        models: tuple[Which, ...] = ("judged",) if self.against is None else ("judged", "against")
        return (
            AR,
            *(Setting("speculative", model, block) for block in self.block_lengths for model in models),
            *(Setting("diffusion", threshold=threshold) for threshold in self.thresholds),
        )

"""The learning rate over a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupStableDecay:
    """Rise linearly over `warmup_steps`, stay at `peak`, fall linearly to zero over the last `decay_share` of the run.

    MiniCPM (arXiv 2404.06395, section 4.2): unlike a cosine it need not know the end of the run until the fall begins.
    """

    peak: float
    warmup_steps: int
    decay_share: float

    def at(self, step: int, progress: float) -> float:
        """Return the rate of the step that follows `step` others, with `progress` in [0, 1) of the run done."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        falling = 1.0 if not self.decay_share else min(1.0, (1 - progress) / self.decay_share)
        return self.peak * rising * falling

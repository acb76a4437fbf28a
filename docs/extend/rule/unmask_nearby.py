"""A rule that is bold only where it reads: near the first open position."""

from dataclasses import dataclass

from torch import Tensor

from unmask.decoding.rules import Rule, View


@dataclass(frozen=True)
class Nearby(Rule):
    """Commit candidates above `tau` that lie within `reach` positions of the first open one."""

    tau: float = 0.8
    reach: int = 8

    def priority(self, view: View) -> Tensor:
        return view.confidence

    def select(self, view: View) -> Tensor:
        last = int(view.positions.max()) if view.positions.numel() else 0
        first = view.positions.masked_fill(~view.open, last).amin(-1, keepdim=True)
        return (view.confidence > self.tau) & (view.positions < first + self.reach)

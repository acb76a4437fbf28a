"""The loop of every training run: step until the end, and stop where nothing is lost."""

from typing import Protocol

from unmask.training.interruption import deferred_interruption


class Stepped(Protocol):
    """A run that trains step by step."""

    def progress(self) -> float:
        """Return how much of the run is done, from 0 to 1."""

    def train_step(self) -> None:
        """Train on one batch."""

    def rest(self) -> bool:
        """Measure and save what is due after a step; say whether it was saved."""

    def save(self) -> None:
        """Write all that is needed to go on from here."""

    def agree(self, *, wanted: bool) -> bool:
        """Say whether any process of the run wants to stop."""


def train(run: Stepped) -> None:
    """Carry a run to its end; on Ctrl-C finish the step, save, and raise KeyboardInterrupt."""
    with deferred_interruption() as interruption:
        while run.progress() < 1:
            run.train_step()
            saved = run.rest()
            if run.agree(wanted=interruption.requested):
                if not saved:
                    run.save()
                raise KeyboardInterrupt

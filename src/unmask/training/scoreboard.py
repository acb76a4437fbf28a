"""Curves for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

from unmask.errors import TrainingError


class Scoreboard:
    """Event files in a folder; a run that goes on after `step` replaces the points that came later."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                "run.tensorboard needs the library tensorboard", "pip install 'unmask[train]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, step: int, scores: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, score in scores.items():
            self._writer.add_scalar(name, score, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

"""What a training run tells: lines in its folder, curves, and events for whoever watches."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from unmask.training.loss import LossMean
from unmask.training.run_folder import METRICS_FILE, RunFolder
from unmask.training.scoreboard import Scoreboard

SAMPLES_FILE = "samples.jsonl"
TIMES_FILE = "times.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class StepRecord:
    """One line of metrics.jsonl: means per scored token, of a training step or of the held-out documents.

    `loss` is what is optimised, `losses` its parts. `num_tokens` counts the scored training tokens so far. Nothing
    in it depends on the clock, so that equal runs have equal lines; the times are in a file of their own.
    """

    split: Split
    step: int
    loss: float
    losses: dict[str, float]
    num_tokens: int
    learning_rate: float | None = None
    gradient_norm: float | None = None

    @property
    def scores(self) -> dict[str, float]:
        """The numbers under the names of their curves."""
        rates = {"learning_rate": self.learning_rate, "gradient_norm": self.gradient_norm}
        known = {name: rate for name, rate in rates.items() if rate is not None}
        return {
            f"{self.split}/{name}": value
            for name, value in ({"loss": self.loss} | self.losses | known).items()
        }


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` steps or, by the clock, seconds; and what it has used."""

    step: int
    done: float
    total: float
    seconds: float
    num_tokens: int


@dataclass(frozen=True)
class TrainingEvent:
    """News for whoever watches: how far the run is, and a record or a sample where there is one."""

    progress: Progress
    record: StepRecord | None = None
    sample: str | None = None


class Journal:
    """Writes down what happens; in a run of several processes the first one's does, the others' only tell."""

    def __init__(self, folder: RunFolder, observe: Callable[[TrainingEvent], None], *, writes: bool) -> None:
        self.folder, self.observe, self.writes = folder, observe, writes
        self.scoreboard: Scoreboard | None = None

    def open(self, step: int | None, *, tensorboard: bool) -> None:
        """Drop what was written after `step`, all of it for None, and go on from there."""
        if self.writes:
            for name in (METRICS_FILE, TIMES_FILE, SAMPLES_FILE):
                self.folder.rewind(name, step)
        if self.writes and tensorboard:
            self.scoreboard = Scoreboard(self.folder.path / TENSORBOARD_FOLDER, step or 0)

    def close(self) -> None:
        """Finish the curves."""
        if self.scoreboard is not None:
            self.scoreboard.close()

    def note_trained(self, mean: LossMean, progress: Progress, *, rate: float, norm: float) -> None:
        """Write down a training step."""
        if self.writes:
            self.folder.append(TIMES_FILE, {"step": progress.step, "seconds": round(progress.seconds, 3)})
        self._note("train", mean, progress, rate, norm)

    def note_measured(self, mean: LossMean, progress: Progress) -> None:
        """Write down the losses on the held-out documents."""
        self._note("held_out", mean, progress, None, None)

    def note_sample(self, text: str, progress: Progress) -> None:
        """Write down what the model wrote."""
        if self.writes:
            self.folder.append(SAMPLES_FILE, {"step": progress.step, "text": text})
        self.observe(TrainingEvent(progress, sample=text))

    def _note(
        self, split: Split, mean: LossMean, progress: Progress, rate: float | None, norm: float | None
    ) -> None:
        record = StepRecord(
            split, progress.step, mean.optimised, mean.losses, progress.num_tokens, rate, norm
        )
        if self.writes:
            self.folder.append(METRICS_FILE, asdict(record))
        if self.scoreboard is not None:
            self.scoreboard.add(record.step, record.scores)
        self.observe(TrainingEvent(progress, record=record))

"""The checkpoints in the folder of a run: one folder for each step that was saved, with a model inside (no torch)."""

from pathlib import Path

MODEL_FOLDER = "model"


def checkpoint_name(step: int) -> str:
    """Return the name of a step's checkpoint."""
    return f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """Return the folders of the checkpoints that are there, the latest last."""
    return sorted(run.glob("step-" + "[0-9]" * 8))


def last_model(source: str) -> str:
    """Return the model in the last checkpoint of a run's folder, and any other source as it is."""
    found = checkpoints(Path(source).expanduser())
    return str(found[-1] / MODEL_FOLDER) if found else source

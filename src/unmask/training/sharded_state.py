"""The state of a run on disk: each process writes its share, and any number of processes can read it back."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from unmask.training.parallel import Workers

State = dict[str, Any]
"""Nested dictionaries of tensors, shared out or not, and of plain values."""


def save_state(
    folder: Path, module: nn.Module, optimizers: list[Optimizer], rest: State, workers: Workers
) -> None:
    """Write the state of a module and its optimisers, and `rest` beside them; OSError when it cannot be written."""
    model, moments = get_state_dict(module, optimizers)
    try:
        with _alone_is_fine():
            state_dict_saver.save(
                {"model": model, "optimizers": moments, **rest},
                checkpoint_id=folder,
                no_dist=workers.count == 1,
            )
    except CheckpointException as error:
        raise OSError(_first_reason(error)) from error


def load_state(
    folder: Path, module: nn.Module, optimizers: list[Optimizer], rest: State, workers: Workers
) -> State:
    """Read what `save_state` wrote into the module, the optimisers and the tensors of `rest`; return the latter.

    Raise OSError or RuntimeError when the folder is not whole.
    """
    model, moments = get_state_dict(module, optimizers)
    state: State = {"model": model, "optimizers": moments, **rest}
    try:
        with _alone_is_fine():
            state_dict_loader.load(state, checkpoint_id=folder, no_dist=workers.count == 1)
    except CheckpointException as error:
        raise OSError(_first_reason(error)) from error
    set_state_dict(module, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizers"])
    return {name: state[name] for name in rest}


def _first_reason(error: CheckpointException) -> str:
    """Return what the first process that failed had to say."""
    failure = error.failures[min(error.failures)]
    return str(failure[0])


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Keep torch from warning that a run has one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield

"""The modes of decoding."""

from typing import Literal, get_args

Mode = Literal["ar", "diffusion", "speculative", "auto"]
ENGINE_MODES: tuple[Mode, ...] = get_args(Mode)
"""How the engine can write: `auto` is ar or speculative, whatever is faster with all that runs."""

MODES: tuple[Mode, ...] = ("ar", "diffusion", "speculative")
"""How one request can be written by itself."""

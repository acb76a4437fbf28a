"""Filling a gap whose length is known: a canvas between what comes before and what comes after."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmask.decoding.candidates import Shape
from unmask.decoding.options import Options
from unmask.decoding.samplers import Unmask
from unmask.decoding.sampling import sample
from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.evaluation.canvas_after import CanvasAfter
from unmask.model.denoiser import Denoiser


@dataclass(frozen=True)
class Filling:
    """The tokens of a gap, and the forwards it took; the first of them runs the text before it too."""

    tokens: tuple[int, ...]
    num_forwards: int


def fill(
    denoiser: Denoiser, before: Sequence[int], num_open: int, after: Sequence[int], options: Options
) -> Filling:
    """Decide `num_open` tokens between two texts, in an order and at a pace that `options.rule` chooses.

    What comes before is the causal stream, what comes after stands decided on the canvas. `options`: resolved, of mode
    diffusion, for a model with a canvas; `num_steps` is for the whole gap.
    """
    assert options.rule is not None  # resolve
    assert denoiser.mask_token_id is not None  # mode diffusion
    canvas = torch.tensor([[0] * num_open + list(after)])
    filled = sample(
        CanvasAfter(denoiser, before, capacity=len(before)),
        Masked(denoiser.vocab_size, denoiser.mask_token_id, Linear()),
        canvas,
        (torch.arange(canvas.shape[1]) < num_open)[None],
        Unmask(options.rule),
        steps=options.num_steps or num_open,
        seeds=(options.seed,),
        shape=Shape(options.temperature, options.top_k, options.top_p),
        start=len(before),
    )
    return Filling(tuple(filled.tokens[0, :num_open].tolist()), int(filled.num_forwards[0]))

"""Filling a gap whose length is known: a canvas between what comes before and what comes after."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmask.decoding.admission import gaussian_sampler
from unmask.decoding.gaussian_sampling import gaussian_sample
from unmask.decoding.options import DEFAULT_GAUSSIAN_STEPS, Options
from unmask.decoding.sampler import Sampler
from unmask.decoding.samplers import Unmask
from unmask.decoding.sampling import Sampled, sample
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
    """Decide `num_open` tokens between two texts, by the rule or the sampler of the options.

    What comes before is the causal stream, what comes after stands given on the canvas; a full-attention model sees the
    whole both ways. `options`: resolved, of mode diffusion; `num_steps` is for the whole gap.
    """
    head = list(before) if denoiser.full_attention else []
    tokens = torch.tensor([[*head, *([0] * num_open), *after]])
    places = torch.arange(tokens.shape[1]) - len(head)
    free = ((places >= 0) & (places < num_open))[None]
    seeds, shape = (options.seed,), options.shape
    filled: Sampled
    if denoiser.vectors is not None:
        informed, device = denoiser.informed(), denoiser.transformer.device
        filled = gaussian_sample(
            informed,
            informed.process,
            tokens.to(device),
            free.to(device),
            gaussian_sampler(options),
            steps=options.num_steps or DEFAULT_GAUSSIAN_STEPS,
            seeds=seeds,
            shape=shape,
        )
    else:
        assert denoiser.process is not None  # mode diffusion
        sampler = options.sampler
        if sampler is None:
            assert options.rule is not None  # resolve
            sampler = Unmask(options.rule)
        assert isinstance(sampler, Sampler)  # admit
        filled = sample(
            denoiser.whole
            if denoiser.full_attention
            else CanvasAfter(denoiser, before, capacity=len(before)),
            denoiser.process,
            tokens,
            free,
            sampler,
            steps=options.num_steps or num_open,
            seeds=seeds,
            shape=shape,
            start=len(before) - len(head),
        )
    written = filled.tokens[0, len(head) : len(head) + num_open]
    return Filling(tuple(written.tolist()), int(filled.num_forwards[0]))

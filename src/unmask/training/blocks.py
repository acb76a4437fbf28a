"""Where the canvases of a training document lie, and what of them is open."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.model.denoiser import Canvas
from unmask.training.documents import Document


@dataclass(frozen=True)
class BlockConfig:
    """How documents are cut into canvases.

    Every canvas has a length from `lengths`, and the first starts anywhere, so that block length and phase can be
    chosen at inference. `drafting_share` of them are fully open, as in a draft; of the others each token is open with
    a probability t ~ U(0, 1), as in denoising (masked diffusion with the linear schedule).
    """

    lengths: tuple[int, ...]
    drafting_share: float

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 2:
            raise ValueError(f"block lengths {self.lengths}: each must be at least 2")
        if not 0 <= self.drafting_share <= 1:
            raise ValueError(f"drafting_share={self.drafting_share} must lie in [0, 1]")


def cut(
    document: Document,
    row: int,
    mask_token_id: int,
    config: BlockConfig,
    generator: np.random.Generator,
) -> list[Canvas]:
    """Tile what is learnt of a document, from about the begin of each span to its end, with canvases on a cache row.

    Each canvas has a length of its own, and none is shorter than the least length: unlike `streams.Cuts`, which scores
    every token once, this asks for canvases as decoding finds them.
    """
    clean = torch.tensor(document.ids)
    canvases = []
    least, most = min(config.lengths), max(config.lengths)
    for begin, end in document.learnt:
        if end - begin < least:
            continue
        start = begin + int(generator.integers(min(most, end - begin - least + 1)))
        while start + least <= end:
            length = int(generator.choice(config.lengths))
            tokens = clean[start : min(start + length, end)].clone()
            tokens[torch.from_numpy(_open(len(tokens), config, generator))] = mask_token_id
            canvases.append(Canvas(row, start, tokens))
            start += length
    return canvases


def is_draft(canvas: Canvas, mask_token_id: int) -> bool:
    """Say whether a canvas is fully open."""
    return bool((canvas.tokens == mask_token_id).all())


def _open(
    length: int, config: BlockConfig, generator: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if generator.random() < config.drafting_share:
        return np.ones(length, dtype=np.bool_)
    chosen = generator.random(length) < generator.random()
    chosen[generator.integers(length)] = True
    return chosen


def draft_lengths(agrees: Tensor, canvas: Tensor, num_canvases: int) -> Tensor:
    """Count the leading predictions of each canvas that agree.

    (M,) flags and (M,) ascending canvas numbers -> (num_canvases,), zero for a canvas without predictions.
    """
    wrong = (~agrees).long().cumsum(0)
    before = torch.zeros(num_canvases, dtype=torch.int64)
    before.scatter_reduce_(0, canvas, wrong - (~agrees).long(), "amin", include_self=False)
    return torch.bincount(canvas[wrong == before[canvas]], minlength=num_canvases)

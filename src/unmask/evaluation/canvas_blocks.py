"""A converted model's canvas as a denoiser of blocks, of which likelihoods and bounds can be measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.errors import UsageError
from unmask.layout import Layout, Segment
from unmask.model.denoiser import Canvas, Denoiser


@dataclass(frozen=True)
class CanvasBlocks:
    """A `BlockDenoiser`: each block is a canvas on the causal stream's keys and values of the clean tokens before it.

    With a logit shift the causal stream predicts the first token of a block, as it does in decoding. Raises UsageError
    for a model without a canvas, and for one that is told the time, of which a canvas says nothing.
    """

    denoiser: Denoiser

    def __post_init__(self) -> None:
        if self.denoiser.mask_token_id is None:
            raise UsageError(
                "this model has no mask token, so it has no canvas",
                "convert it first" if self.denoiser.predicts_next else "choose a model of masked noise",
            )
        if self.denoiser.conditioning is not None:
            raise UsageError(
                "this model is told the time or its last belief", "measure it as the model it was trained as"
            )

    @property
    def process(self) -> Masked:
        """The noise of a canvas; an exact count of masks needs no more of the schedule."""
        return Masked(self.denoiser.vocab_size, self.denoiser.mask_token_id, Linear())

    @torch.inference_mode()
    def __call__(
        self, clean: Tensor, noisy: Tensor, time: Tensor, starts: Sequence[int], wanted: Tensor
    ) -> Tensor:
        """Return logits (M, K) at the wanted places; equal rows of `clean` are run once."""
        denoiser, (rows, length) = self.denoiser, noisy.shape
        contexts, context_of = clean.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
        cache = denoiser.new_cache(length, num_rows=len(contexts))
        layout = Layout([Segment(0, length, store=True, row=row) for row in range(len(contexts))])
        device = denoiser.transformer.device
        causal = denoiser.transformer(contexts.flatten().to(device), layout, cache)
        hidden = causal.new_zeros(rows, length, causal.shape[-1])
        if denoiser.logit_shift:
            before = torch.tensor(starts, device=device) - 1
            hidden[:, list(starts)] = causal.view(len(contexts), length, -1)[context_of.to(device)][:, before]
        spans = list(zip(starts, [*starts[1:], length], strict=True))
        # Canvases on one cache row stand side by side; under a shift one of a single token has nothing to say.
        places = [
            (row, start, end)
            for row in context_of.argsort().tolist()
            for start, end in spans
            if end - start > int(denoiser.logit_shift)
        ]
        if places:
            canvases = [
                Canvas(int(context_of[row]), start, noisy[row, start:end]) for row, start, end in places
            ]
            states = denoiser.canvas_states(canvases, cache)
            row, start, _ = torch.tensor(places)[states.canvas].unbind(-1)
            hidden[row, start + states.position] = states.hidden
        return denoiser.head(hidden[wanted.to(device)])[:, : denoiser.vocab_size].cpu()

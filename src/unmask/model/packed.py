"""One forward for many requests: each continues its own cache row with decided tokens, a canvas, or both."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.layout import Layout, Segment
from unmask.model.cache import Cache
from unmask.model.denoiser import Denoiser


@dataclass(frozen=True)
class Part:
    """One cache row's part: `tokens` from position `start` on run causally, then `canvas` after them runs both ways.

    `store`: the tokens' keys and values are kept (those of a canvas never are). `num_laws`: so many of the last tokens
    are asked for the law after them. `canvas`: the mask token where open; its tokens run with the adapter. `places`:
    the canvas places whose laws are asked for. A model with a logit shift needs a token before a canvas. `time` and
    `belief` (B, K) of the canvas are for the ports of a denoiser that has them.
    """

    row: int
    start: int
    tokens: Sequence[int]
    store: bool = True
    num_laws: int = 0
    canvas: Sequence[int] = ()
    places: Sequence[int] = ()
    time: float = 1.0
    belief: Tensor | None = None

    @property
    def num_wanted(self) -> int:
        return self.num_laws + len(self.places)


@torch.inference_mode()
def run_parts(denoiser: Denoiser, parts: Sequence[Part], cache: Cache) -> Tensor:
    """Run all parts in one forward; return the laws they ask for, part by part, tokens first: (M, V) float32 logits."""
    segments: list[Segment] = []
    tokens: list[int] = []
    wanted: list[int] = []
    canvases: list[tuple[Part, slice]] = []
    shift = int(denoiser.logit_shift)
    for part in parts:
        num_tokens, begin = len(part.tokens), len(tokens)
        canvas = list(part.canvas)
        if shift and canvas and canvas[-1] == denoiser.mask_token_id:
            canvas.pop()  # it would predict beyond the canvas, and open positions tell the others nothing
        if num_tokens:
            segments.append(Segment(part.start, num_tokens, store=part.store, row=part.row))
        if canvas:
            start = part.start + num_tokens
            root = None if num_tokens else part.row
            parent, offset = (len(segments) - 1, num_tokens) if num_tokens else (None, None)
            segments.append(Segment(start, len(canvas), parent, offset, causal=False, adapter=True, row=root))
            canvases.append((part, slice(len(tokens) + num_tokens, len(tokens) + num_tokens + len(canvas))))
        tokens += [*part.tokens, *canvas]
        wanted += range(begin + num_tokens - part.num_laws, begin + num_tokens)
        wanted += [begin + num_tokens + place - shift for place in part.places]
    device = denoiser.transformer.device
    packed = torch.tensor(tokens, device=device)
    inputs = denoiser.embed(packed)
    if denoiser.conditioning is not None:
        for part, span in canvases:
            noisy = packed[span]
            time = torch.tensor(part.time, device=device).expand(noisy.shape)
            belief = None if part.belief is None else part.belief[: len(noisy)]
            inputs[span] = denoiser.embed_noisy(noisy, time, belief)
    hidden = denoiser.transformer(inputs, Layout(segments), cache, denoiser.adapter)
    return denoiser.head(hidden[torch.tensor(wanted, dtype=torch.int64, device=device)])

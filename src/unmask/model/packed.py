"""One forward for many requests: each continues its own cache row with decided tokens, a canvas, or both."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.layout import Layout, Segment
from unmask.model.cache import Cache
from unmask.model.denoiser import Denoiser


@dataclass(frozen=True)
class Branch:
    """Tokens that follow the first `offset` of a part's own, or of its branch `parent`, and leave no trace.

    They run causally, and the law after each is asked for; with `places` they are a canvas instead, whose laws at these
    places are.
    """

    tokens: Sequence[int]
    offset: int
    parent: int | None = None
    places: Sequence[int] | None = None


@dataclass(frozen=True)
class Part:
    """One cache row's part: `tokens` from position `start` on run causally, then `canvas` after them runs both ways.

    `store`: the tokens' keys and values are kept (those of a canvas never are). `num_laws`: so many of the last tokens
    are asked for the law after them. `canvas`: the mask token where open; its tokens run with the adapter. `places`:
    the canvas places whose laws are asked for. A model with a logit shift needs a token before a canvas. `time` and
    `belief` (B, K) of the canvas are for the ports of a denoiser that has them. `branches`: what else grows from the
    tokens, a parent before its children; canvases among them are all open.
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
    branches: Sequence[Branch] = ()

    @property
    def num_wanted(self) -> int:
        beside = sum(
            len(branch.tokens if branch.places is None else branch.places) for branch in self.branches
        )
        return self.num_laws + len(self.places) + beside


@torch.inference_mode()
def run_parts(denoiser: Denoiser, parts: Sequence[Part], cache: Cache) -> Tensor:
    """Run all parts in one forward; return the laws they ask for: (M, V) float32 logits.

    Part by part, and in each the laws of its tokens, its canvas, its branches.
    """
    segments: list[Segment] = []
    tokens: list[int] = []
    wanted: list[int] = []
    canvases: list[tuple[float, Tensor | None, slice]] = []
    shift = int(denoiser.logit_shift)
    for part in parts:
        num_tokens, begin = len(part.tokens), len(tokens)
        canvas = _run_part(denoiser, part.canvas)
        root = len(segments)
        if num_tokens:
            segments.append(Segment(part.start, num_tokens, store=part.store, row=part.row))
        if canvas:
            start = part.start + num_tokens
            row = None if num_tokens else part.row
            parent, offset = (root, num_tokens) if num_tokens else (None, None)
            segments.append(Segment(start, len(canvas), parent, offset, causal=False, adapter=True, row=row))
            span = slice(len(tokens) + num_tokens, len(tokens) + num_tokens + len(canvas))
            canvases.append((part.time, part.belief, span))
        tokens += [*part.tokens, *canvas]
        wanted += range(begin + num_tokens - part.num_laws, begin + num_tokens)
        wanted += [begin + num_tokens + place - shift for place in part.places]
        places = [root]
        for branch in part.branches:
            parent = places[0 if branch.parent is None else branch.parent + 1]
            is_canvas, begin = branch.places is not None, len(tokens)
            run = _run_part(denoiser, branch.tokens) if is_canvas else list(branch.tokens)
            places.append(len(segments))
            start = segments[parent].start + branch.offset
            segments.append(
                Segment(start, len(run), parent, branch.offset, causal=not is_canvas, adapter=is_canvas)
            )
            tokens += run
            if branch.places is None:
                wanted += range(begin, begin + len(run))
            else:
                wanted += [begin + place - shift for place in branch.places]
                canvases.append((1.0, None, slice(begin, begin + len(run))))
    device = denoiser.transformer.device
    packed = torch.tensor(tokens, device=device)
    inputs = denoiser.embed(packed)
    if denoiser.conditioning is not None:
        for share, belief, span in canvases:
            noisy = packed[span]
            time = torch.tensor(share, device=device).expand(noisy.shape)
            inputs[span] = denoiser.embed_noisy(noisy, time, None if belief is None else belief[: len(noisy)])
    hidden = denoiser.transformer(inputs, Layout(segments), cache, denoiser.adapter)
    return denoiser.head(hidden[torch.tensor(wanted, dtype=torch.int64, device=device)])


def _run_part(denoiser: Denoiser, canvas: Sequence[int]) -> list[int]:
    """Drop a last open position that, under a shift, predicts beyond the canvas and tells the others nothing."""
    is_idle = denoiser.logit_shift and bool(canvas) and canvas[-1] == denoiser.mask_token_id
    return list(canvas[:-1] if is_idle else canvas)

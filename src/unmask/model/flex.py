"""Attention under a layout as one FlexAttention kernel, for training on CUDA (Dong et al. 2024, arXiv 2412.05496)."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from unmask.layout import Layout
from unmask.model.layout_mask import LayoutMask


class FlexPlan:
    """What every layer of one forward does alike: the layout's mask, of which empty tiles are never computed.

    A layout that continues no cache row, as those of training on whole models do. `compiled`: without, the same sums
    are taken step by step, on any device.
    """

    def __init__(self, layout: Layout, device: torch.device, *, compiled: bool = True) -> None:
        if any(segment.row is not None for segment in layout.segments):
            raise ValueError("FlexAttention serves layouts without cache rows")
        size = layout.num_tokens
        self.mask = create_block_mask(LayoutMask(layout, device), None, None, size, size, device=device)
        self.kernel = _compiled() if compiled else flex_attention

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return softmax(q k / sqrt K) v under the layout: (N, H, K) and twice (N, kv heads, K) -> (N, H, K)."""
        q, k, v = (packed.transpose(0, 1)[None] for packed in (queries, keys, values))
        attended: Tensor = self.kernel(q, k, v, block_mask=self.mask, enable_gqa=q.shape[1] != k.shape[1])
        return attended[0].transpose(0, 1)

    def finish(self) -> None:
        """Record nothing: there is no cache."""


@cache
def _compiled() -> Any:
    # Every batch has another number of tokens.
    return torch.compile(flex_attention, dynamic=True)

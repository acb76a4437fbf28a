"""Attention under a layout as one FlexAttention kernel, for training on CUDA (Dong et al. 2024, arXiv 2412.05496)."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from unmask.layout import Layout


class LayoutMask:
    """Who sees whom under a layout, for packed places of queries and keys; cached tokens have no place here.

    Every segment sees of every other the tokens before a limit, and of itself all of them, or only those that come
    before when it is causal. So a (segments, segments) table of limits says it all.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        count = len(layout.segments)
        limits = torch.zeros(count, count, dtype=torch.int64)
        for index, segment in enumerate(layout.segments):
            if segment.parent is not None:
                limits[index] = limits[segment.parent]
                limits[index, segment.parent] = segment.offset or 0
            limits[index, index] = segment.length
        lengths = torch.tensor([segment.length for segment in layout.segments])
        owner = torch.repeat_interleave(torch.arange(count), lengths)
        causal = torch.tensor([segment.causal for segment in layout.segments])
        self.limits, self.owner = limits.to(device), owner.to(device)
        self.place = (torch.arange(layout.num_tokens) - torch.from_numpy(layout.bounds)[owner]).to(device)
        self.causal = causal[owner].to(device)

    def __call__(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Say whether `query` may attend to `key`: the mask function that FlexAttention compiles."""
        mine, other = self.owner[query], self.owner[key]
        hidden = self.causal[query] & (mine == other) & (key > query)
        return (self.place[key] < self.limits[mine, other]) & ~hidden


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

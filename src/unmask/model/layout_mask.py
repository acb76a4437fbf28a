"""The layout's visibility as tensors, for kernels that test pairs of tokens."""

import torch
from torch import Tensor

from unmask.layout import Layout


class LayoutMask:
    """Who sees whom under a layout, for packed places of queries and keys; cached tokens have no place here.

    Every segment sees of every other the tokens before a limit, and of itself all of them, or only those that come
    before when it is causal. So a (segments, segments) table of limits says it all.

    `limits`: that table. Of each packed token, `owner`: its segment, `place`: its place there, `causal`: whether it
    sees only backwards there.
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

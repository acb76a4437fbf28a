"""Attention over pages as one Triton kernel, for CUDA; Triton's interpreter runs it anywhere."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import triton
from torch import Tensor

from unmask.engine.paged_kernel import attend_tile
from unmask.layout import Layout, Segment
from unmask.model.layout_mask import LayoutMask

_KEYS = 32
"""Keys that a tile takes in at a time."""

_FEWEST_ROWS, _MOST_ROWS = 16, 64
"""Of a tile: queries times the heads that share a key head. A product on a GPU needs 16."""


class PagedPlan:
    """What every layer of one forward does alike over pages: which tokens a tile holds, and what these see.

    `keys`, `values`: (layers, slots, kv heads, K). `pages`: (rows, most pages), those of each cache row in order.
    `lengths`: stored positions by row, which `finish` brings up to date.
    """

    def __init__(
        self, layout: Layout, keys: Tensor, values: Tensor, pages: Tensor, page_size: int, lengths: list[int]
    ) -> None:
        self.layout, self.lengths = layout, lengths
        self.keys, self.values, self.pages, self.page_size = keys, values, pages, page_size
        self.mask = LayoutMask(layout, keys.device)
        self._roots: list[Segment] = []
        for segment in layout.segments:
            self._roots.append(segment if segment.parent is None else self._roots[segment.parent])
        self.cached = self._of_tokens([0 if root.row is None else root.start for root in self._roots])
        self._stored, self._slots = self._stores()
        self._tiles: dict[int, Tensor] = {}

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return softmax(q k / sqrt K) v under the layout: (N, H, K) and twice (N, kv heads, K) -> (N, H, K)."""
        if len(self._stored):
            self.keys[layer].index_copy_(0, self._slots, keys[self._stored])
            self.values[layer].index_copy_(0, self._slots, values[self._stored])
        num_heads, num_kv_heads, size = queries.shape[1], keys.shape[1], queries.shape[2]
        group = num_heads // num_kv_heads
        longest = max(island.end - island.begin for island in self.layout.islands)
        rows = min(_MOST_ROWS, triton.next_power_of_2(longest * group))
        rows = max(_FEWEST_ROWS, triton.next_power_of_2(group), rows)
        queries, keys, values = (_by_token(packed) for packed in (queries, keys, values))
        output = torch.empty_like(queries, memory_format=torch.contiguous_format)
        tiles = self._tiles_of(rows // group)
        attend_tile[(len(tiles), num_kv_heads)](
            queries,
            keys,
            values,
            output,
            self.keys[layer],
            self.values[layer],
            self.pages,
            tiles,
            self.mask.owner,
            self.mask.place,
            self.mask.causal,
            self.mask.limits,
            self.cached,
            size**-0.5,
            queries.stride(0),
            keys.stride(0),
            values.stride(0),
            num_heads * size,
            num_kv_heads * size,
            self.pages.shape[1],
            self.mask.limits.shape[1],
            PAGE_SIZE=self.page_size,
            GROUP=group,
            SIZE=size,
            WIDTH=max(16, triton.next_power_of_2(size)),
            ROWS=rows,
            KEYS=_KEYS,
        )
        return output

    def finish(self) -> None:
        """Record how far the forward stored, once every layer has written it."""
        for segment, root in zip(self.layout.segments, self._roots, strict=True):
            if segment.store:
                assert root.row is not None  # Layout
                self.lengths[root.row] = segment.start + segment.length

    def _stores(self) -> tuple[Tensor, Tensor]:
        """Return which packed tokens are stored, and the slots that they go to."""
        spans = zip(self.layout.segments, pairwise(self.layout.bounds.tolist()), strict=True)
        places = [place for segment, span in spans if segment.store for place in range(*span)]
        stored = torch.tensor(places, dtype=torch.int64, device=self.keys.device)
        rows = self._of_tokens([root.row or 0 for root in self._roots])[stored]
        positions = torch.from_numpy(self.layout.positions).to(self.keys.device)[stored]
        pages = self.pages[rows, positions // self.page_size]
        return stored, pages * self.page_size + positions % self.page_size

    def _of_tokens(self, of_segments: Sequence[int]) -> Tensor:
        """Return a number for each packed token, given one for each segment: (N,)."""
        return torch.tensor(of_segments, device=self.keys.device)[self.mask.owner]

    def _tiles_of(self, num_queries: int) -> Tensor:
        """Return the tiles of so many queries: (T, 5), first query, island's begin and end, cache row, most cached."""
        if num_queries not in self._tiles:
            rows = [
                (begin, island.begin, island.end, island.row or 0, island.num_cached)
                for island in self.layout.islands
                for begin in range(island.begin, island.end, num_queries)
            ]
            self._tiles[num_queries] = torch.tensor(rows, device=self.keys.device)
        return self._tiles[num_queries]


def _by_token(packed: Tensor) -> Tensor:
    """Return (N, H, K) whose heads lie one after the other in every token."""
    in_order = packed.stride(2) == 1 and packed.stride(1) == packed.shape[2]
    return packed if in_order else packed.contiguous()

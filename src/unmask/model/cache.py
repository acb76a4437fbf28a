"""The KV cache: what attention asks of one, and the contiguous one of the reference path."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unmask.config import TransformerConfig
from unmask.layout import Layout
from unmask.model.plan import Plan


@dataclass(frozen=True)
class Storage:
    """Where a cache holds what it stores, for kernels that read it in place.

    `keys`, `values`: by layer. Position p of a row, head h, lies in a layer at ``pages[row, p // page_size]``, ``p %
    page_size`` and h times the three `strides`, summed. `pages`: (rows, most pages) int64; those that a row does not
    have are `num_pages` or more.
    """

    keys: Tensor
    values: Tensor
    pages: Tensor
    num_pages: int
    page_size: int
    strides: tuple[int, int, int]


class Cache(Protocol):
    """Rows of keys and values by position; `lengths` counts what each row has stored."""

    lengths: list[int]

    @property
    def num_rows(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    def write(self, layer: int, rows: slice, start: int, keys: Tensor, values: Tensor) -> None:
        """Store (R, kv heads, n, K) keys and values at positions ``[start, start + n)`` of `rows`."""

    def read(self, layer: int, rows: slice, length: int) -> tuple[Tensor, Tensor]:
        """Return the first `length` positions of `rows`: two of (R, kv heads, length, K)."""
        ...

    def storage(self) -> Storage:
        """Return where keys and values lie."""
        ...

    def plan(self, layout: Layout) -> Plan | None:
        """Return this cache's own attention under a layout; `None`: that of `AttentionPlan` serves it."""


class KVCache:
    """Keys and values of decided tokens, `num_rows` requests of up to `capacity` positions.

    `lengths[row]` counts the stored positions. Nothing is ever removed: a forward whose root starts earlier sees only
    what lies before its start and overwrites what follows, which is how rejected drafts are dropped.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        num_rows: int = 1,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (config.num_layers, num_rows, config.num_kv_heads, capacity, config.head_size)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.lengths = [0] * num_rows

    @property
    def num_rows(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def write(self, layer: int, rows: slice, start: int, keys: Tensor, values: Tensor) -> None:
        """Store (R, kv heads, n, K) keys and values at positions ``[start, start + n)`` of `rows`."""
        span = slice(start, start + keys.shape[2])
        self.keys[layer, rows, :, span] = keys
        self.values[layer, rows, :, span] = values

    def read(self, layer: int, rows: slice, length: int) -> tuple[Tensor, Tensor]:
        """Return views of the first `length` positions of `rows`: two of (R, kv heads, length, K)."""
        return self.keys[layer, rows, :, :length], self.values[layer, rows, :, :length]

    def storage(self) -> Storage:
        """Return where keys and values lie: each row is a page."""
        _, page, head, position, _ = self.keys.stride()
        pages = torch.arange(self.num_rows, device=self.keys.device)[:, None]
        return Storage(self.keys, self.values, pages, self.num_rows, self.capacity, (page, position, head))

    def plan(self, layout: Layout) -> None:
        """Return nothing: attention reads these keys and values as they lie."""


def check_room(layout: Layout, cache: Cache | None) -> None:
    """Raise ValueError where a layout sees or stores what the cache has no row or no room for."""
    for island in layout.islands:
        if island.row is None:
            continue
        if cache is None or island.row >= cache.num_rows:
            raise ValueError(
                f"the layout continues cache row {island.row}, which the given cache does not have"
            )
        if (held := cache.lengths[island.row]) < island.num_cached:
            raise ValueError(
                f"the layout sees {island.num_cached} cached tokens of row {island.row}, which holds {held}"
            )
        for segment in (layout.segments[index] for index in island.segments):
            if segment.store and segment.start + segment.length > cache.capacity:
                raise ValueError(
                    f"storing up to position {segment.start + segment.length} exceeds capacity {cache.capacity}"
                )

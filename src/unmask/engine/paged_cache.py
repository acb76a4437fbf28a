"""The KV cache over pages: a reference path in plain PyTorch that runs anywhere."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask.config import TransformerConfig
from unmask.engine.pages import PageTable


class PagedCache:
    """Keys and values of `num_pages` pages of `page_size` positions: (layers, pages * page size, kv heads, K) each."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (config.num_layers, num_pages * page_size, config.num_kv_heads, config.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.page_size = page_size

    def rows(self, tables: Sequence[PageTable], lengths: Sequence[int]) -> "PagedRows":
        """Return requests as the rows of a cache, given their tables and how many positions each has stored."""
        return PagedRows(self, tables, lengths)

    @staticmethod
    def page_bytes(config: TransformerConfig, page_size: int, dtype: torch.dtype) -> int:
        """Return the size of a page in bytes."""
        return 2 * config.num_layers * page_size * config.num_kv_heads * config.head_size * dtype.itemsize


class PagedRows:
    """A `Cache` for one forward, whose rows are page tables."""

    def __init__(self, cache: PagedCache, tables: Sequence[PageTable], lengths: Sequence[int]) -> None:
        self._cache = cache
        self.lengths = list(lengths)
        num_slots = cache.keys.shape[1]
        most = max(len(table.pages) for table in tables)
        # A slot that a short row does not have lies outside, where reading and writing fail.
        pages = torch.tensor(
            [[*table.pages, *[num_slots] * (most - len(table.pages))] for table in tables], dtype=torch.int64
        )
        within = torch.arange(cache.page_size)
        self._slots = (pages[:, :, None] * cache.page_size + within).flatten(1).to(cache.keys.device)

    @property
    def num_rows(self) -> int:
        return len(self._slots)

    @property
    def capacity(self) -> int:
        return self._slots.shape[1]

    def write(self, layer: int, rows: slice, start: int, keys: Tensor, values: Tensor) -> None:
        """Store (R, kv heads, n, K) keys and values at positions ``[start, start + n)`` of `rows`."""
        slots = self._slots[rows, start : start + keys.shape[2]].flatten()
        self._cache.keys[layer].index_copy_(0, slots, keys.transpose(1, 2).flatten(0, 1))
        self._cache.values[layer].index_copy_(0, slots, values.transpose(1, 2).flatten(0, 1))

    def read(self, layer: int, rows: slice, length: int) -> tuple[Tensor, Tensor]:
        """Return copies of the first `length` positions of `rows`: two of (R, kv heads, length, K)."""
        slots = self._slots[rows, :length]
        shape = (*slots.shape, *self._cache.keys.shape[2:])
        keys = self._cache.keys[layer].index_select(0, slots.flatten()).view(shape)
        values = self._cache.values[layer].index_select(0, slots.flatten()).view(shape)
        return keys.transpose(1, 2), values.transpose(1, 2)

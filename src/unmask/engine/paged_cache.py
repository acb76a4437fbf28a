"""The KV cache over pages, read by plain PyTorch anywhere, and by a kernel of its own on CUDA."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise

import torch
from torch import Tensor

from unmask.config import TransformerConfig
from unmask.engine.pages import PageTable
from unmask.layout import Layout
from unmask.model.cache import Storage
from unmask.model.plan import Plan


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
    """A `Cache` for one forward, whose rows are page tables.

    Slots that follow one another are sliced, not gathered: a request whose pages lie in order is read without a copy.
    """

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
        self._table = pages.to(cache.keys.device)
        self._pages = [table.pages for table in tables]
        self._found: dict[tuple[int, int, int, int], slice | Tensor] = {}

    @property
    def num_rows(self) -> int:
        return len(self._slots)

    @property
    def capacity(self) -> int:
        return self._slots.shape[1]

    def write(self, layer: int, rows: slice, start: int, keys: Tensor, values: Tensor) -> None:
        """Store (R, kv heads, n, K) keys and values at positions ``[start, start + n)`` of `rows`."""
        slots = self._where(rows, start, start + keys.shape[2])
        for stored, new in ((self._cache.keys, keys), (self._cache.values, values)):
            stored[layer][slots] = new.transpose(1, 2).flatten(0, 1)

    def read(self, layer: int, rows: slice, length: int) -> tuple[Tensor, Tensor]:
        """Return the first `length` positions of `rows`: two of (R, kv heads, length, K)."""
        slots = self._where(rows, 0, length)
        shape = (rows.stop - rows.start, length, *self._cache.keys.shape[2:])
        keys, values = self._cache.keys[layer][slots], self._cache.values[layer][slots]
        return keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2)

    def storage(self) -> Storage:
        """Return where keys and values lie."""
        cache = self._cache
        _, slot, head, _ = cache.keys.stride()
        size, strides = cache.page_size, (cache.page_size * slot, slot, head)
        return Storage(cache.keys, cache.values, self._table, cache.keys.shape[1] // size, size, strides)

    def plan(self, layout: Layout) -> Plan | None:
        """Return the kernel's attention under a layout on CUDA, where Triton is; else `read` serves."""
        return self.kernel_plan(layout) if self._cache.keys.is_cuda and find_spec("triton") else None

    def kernel_plan(self, layout: Layout) -> Plan:
        """Return the kernel's attention under a layout, on a device that Triton knows or in its interpreter."""
        from unmask.engine.paged_attention import PagedPlan

        cache = self._cache
        return PagedPlan(layout, cache.keys, cache.values, self._table, cache.page_size, self.lengths)

    def _where(self, rows: slice, begin: int, end: int) -> slice | Tensor:
        """Return the slots of positions ``[begin, end)`` of `rows`, all in one line; every layer asks for the same."""
        key = rows.start, rows.stop, begin, end
        if key not in self._found:
            size, table = self._cache.page_size, self._pages[rows.start]
            pages = table[begin // size : -(-end // size)]
            if rows.stop - rows.start == 1 and end <= len(table) * size and _follow(pages):
                first = pages[0] * size + begin % size
                self._found[key] = slice(first, first + end - begin)
            else:
                self._found[key] = self._slots[rows, begin:end].flatten()
        return self._found[key]


def _follow(pages: Sequence[int]) -> bool:
    return all(after == before + 1 for before, after in pairwise(pages))

"""Attention over packed tokens as the layout says: one call for each group of islands of the same shape."""

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.layout import Island, Layout
from unmask.model.cache import Cache, check_room

_MOST_SINGLE = 64  # tokens of a root: of more, as in prompts, attention one by one would take much longer


@dataclass(frozen=True)
class _Store:
    """A run of an island's tokens, `begin` on, whose keys and values go to the cache at `start`."""

    begin: int
    length: int
    start: int


@dataclass(frozen=True)
class _Group:
    """`count` neighbouring islands of equal shape on neighbouring cache rows: packed tokens ``[begin, end)``."""

    begin: int
    end: int
    count: int
    num_cached: int
    rows: slice | None
    mask: Tensor | None
    causal: bool
    stores: tuple[_Store, ...]
    num_root: int  # tokens of the first segment, where it is causal and continues a cache row

    @property
    def size(self) -> int:
        return (self.end - self.begin) // self.count

    @property
    def all_stored(self) -> bool:
        return sum(store.length for store in self.stores) == self.size


class AttentionPlan:
    """What every layer of one forward does alike: the groups, their masks and their places in the cache.

    `single_queries`: the tokens of a causal root on a cache row attend one by one, so that what comes out, bit for bit,
    does not depend on how many of them run together. The tokens of a root of more than 64, and all branches, attend
    together.
    """

    def __init__(
        self, layout: Layout, cache: Cache | None, device: torch.device, *, single_queries: bool = False
    ) -> None:
        self.cache, self.single_queries = cache, single_queries
        check_room(layout, cache)
        self.groups = [_group(layout, islands, device) for islands in _alike(layout)]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return softmax(q k / sqrt K) v under the layout: (N, H, K) and twice (N, kv heads, K) -> (N, H, K)."""
        outputs = [self._attend_group(group, layer, queries, keys, values) for group in self.groups]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_group(
        self, group: _Group, layer: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        q, k, v = (_split(packed[group.begin : group.end], group.count) for packed in (queries, keys, values))
        if self.cache is not None and group.rows is not None:
            for store in group.stores:
                span = slice(store.begin, store.begin + store.length)
                self.cache.write(layer, group.rows, store.start, k[:, :, span], v[:, :, span])
            if group.all_stored:
                k, v = self.cache.read(layer, group.rows, group.num_cached + group.size)
            elif group.num_cached:
                cached_k, cached_v = self.cache.read(layer, group.rows, group.num_cached)
                k, v = torch.cat([cached_k, k], dim=2), torch.cat([cached_v, v], dim=2)
        num_single = group.num_root if self.single_queries and group.num_root <= _MOST_SINGLE else 0
        if group.size == 1:
            num_single = 1
        outputs = [
            _attend_one(q[:, :, place], k[:, :, :end], v[:, :, :end])
            for place in range(num_single)
            for end in [group.num_cached + place + 1]
        ]
        if num_single < group.size:
            mask = None if group.mask is None else group.mask[num_single:]
            outputs.append(_attend(q[:, :, num_single:], k, v, mask, causal=group.causal and not num_single))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        return output.transpose(1, 2).flatten(0, 1)

    def finish(self) -> None:
        """Record in the cache what the forward stored, once every layer has written it."""
        for group in self.groups:
            if self.cache is not None and group.rows is not None:
                for store in group.stores:
                    for row in range(group.rows.start, group.rows.stop):
                        self.cache.lengths[row] = store.start + store.length


def _attend_one(query: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what a single query (R, H, K) sees of all keys: (R, H, 1, K).

    Its head group takes the place of the query axis, so that keys are read once per group.
    """
    grouped = query.view(len(query), k.shape[1], -1, query.shape[2])
    return F.scaled_dot_product_attention(grouped, k, v).flatten(1, 2)[:, :, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Return what queries (R, H, n, K) see: (R, H, n, K)."""
    grouped = q.shape[1] != k.shape[1]
    if q.requires_grad and q.device.type == "cpu":
        # The CPU kernel's backward pass is three times slower in bfloat16 than in float32, and loses precision.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal, enable_gqa=grouped
            ).to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _split(packed: Tensor, count: int) -> Tensor:
    """(count * n, H, K) -> (count, H, n, K)."""
    return packed.view(count, -1, *packed.shape[1:]).transpose(1, 2)


def _alike(layout: Layout) -> list[list[Island]]:
    """Return the islands in runs that one call can serve: equal shape, and cache rows that follow one another."""

    def key(numbered: tuple[int, Island]) -> tuple[object, ...]:
        index, island = numbered
        return (layout.shape(island), None if island.row is None else island.row - index)

    return [[island for _, island in run] for _, run in groupby(enumerate(layout.islands), key=key)]


def _group(layout: Layout, islands: list[Island], device: torch.device) -> _Group:
    first = islands[0]
    causal = layout.is_causal(first)
    mask = None
    if not causal:
        visible = layout.mask(first)
        mask = None if visible.all() else torch.from_numpy(visible).to(device)
    stores = tuple(
        _Store(
            int(layout.bounds[index]) - first.begin,
            layout.segments[index].length,
            layout.segments[index].start,
        )
        for index in first.segments
        if layout.segments[index].store
    )
    rows = None if first.row is None else slice(first.row, first.row + len(islands))
    root = layout.segments[first.segments.start]
    num_root = root.length if root.causal and rows is not None else 0
    return _Group(
        first.begin, islands[-1].end, len(islands), first.num_cached, rows, mask, causal, stores, num_root
    )

"""Attention over packed tokens by the compiled kernels: every token sees its keys in the order of their positions."""

import numpy as np
import torch
from torch import Tensor

from unmask.layout import IntArray, Layout
from unmask.model.cache import Cache, Storage, check_room
from unmask.model.kernels import CachedLayer, CachePlace, Kernels


class NativePlan:
    """What every layer of one forward does alike: what each token sees, and where it is stored.

    A token's result does not depend, bit for bit, on what runs beside it, nor on what it sees being stored or packed.
    """

    def __init__(self, kernels: Kernels, layout: Layout, cache: Cache | None) -> None:
        self._kernels, self._layout, self._cache = kernels, layout, cache
        check_room(layout, cache)
        facts = _facts(layout)
        self._facts = torch.from_numpy(facts)
        self._storage = None
        if cache is not None:
            self._storage = cache.storage()
            _check_pages(facts, self._storage)
            pages = self._storage.pages
            strides = self._storage.page_size, *self._storage.strides
            self._place = CachePlace(pages.data_ptr(), pages.shape[1], *strides)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return softmax(q k / sqrt K) v under the layout: (N, H, K) and twice (N, kv heads, K) -> (N, H, K)."""
        cached = None
        if self._storage is not None:
            cached = CachedLayer(self._storage.keys[layer], self._storage.values[layer], self._place)
        return self._kernels.attend(queries, keys, values, self._facts, cached)

    def finish(self) -> None:
        """Record in the cache what the forward stored, once every layer has written it."""
        for index, segment in enumerate(self._layout.segments):
            if segment.store:
                assert self._cache is not None  # check_room
                root = self._layout.root(index)
                assert root.row is not None  # Layout
                self._cache.lengths[root.row] = segment.start + segment.length


def _check_pages(facts: IntArray, storage: Storage) -> None:
    """Raise IndexError for positions in pages that a row does not have: the kernels would reach them all the same."""
    pages = storage.pages.numpy()
    for last in (facts[:, 1] - 1, facts[:, 2]):  # seen in the cache, and stored
        asked = last >= 0
        if (pages[facts[asked, 0], last[asked] // storage.page_size] >= storage.num_pages).any():
            raise IndexError("the layout sees or stores positions in pages that the cache row does not have")


def _facts(layout: Layout) -> IntArray:
    """Return what `Kernels.attend` asks of every token; the last run of packed tokens is in its own segment."""
    segments, bounds = layout.segments, layout.bounds
    paths: list[list[tuple[int, int]]] = []  # of what a segment sees of its ancestors
    for segment in segments:
        path = []
        if segment.parent is not None:
            begin = int(bounds[segment.parent])
            path = [*paths[segment.parent], (begin, begin + (segment.offset or 0))]
        paths.append(path)
    depth = max(len(path) for path in paths)
    table = np.zeros((len(segments), 3 + 2 * (depth + 1)), dtype=np.int64)
    for index, segment in enumerate(segments):
        root = layout.root(index)
        if root.row is not None:
            table[index, :2] = root.row, root.start
        table[index, 2] = segment.start if segment.store else -1
        seen = [number for run in paths[index] for number in run]
        table[index, 3 : 3 + len(seen)] = seen
        table[index, -2:] = bounds[index], bounds[index + 1]
    lengths = np.diff(bounds)
    facts = np.repeat(table, lengths, axis=0)
    places = np.arange(layout.num_tokens) - np.repeat(bounds[:-1], lengths)
    stored = facts[:, 2] >= 0
    facts[stored, 2] += places[stored]
    causal = np.repeat([segment.causal for segment in segments], lengths)
    facts[causal, -1] = np.arange(1, layout.num_tokens + 1)[causal]
    return facts

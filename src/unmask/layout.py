"""The layout of one forward: packed tokens grouped in segments, and who may attend to whom.

A token sees its own segment (only backwards when the segment is causal), and of every ancestor the tokens up to the
offset at which the descendant was attached. It sees nothing else. A root that continues a KV-cache row sees the cached
positions before its start, and so does everything attached to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A run of packed tokens that share a parent and a kind of attention.

    `start`: rotary position of the first token. `parent`: index of the segment it grows from, `offset`: how many of the
    parent's tokens it sees (both `None` for a root). `causal`: backwards-only inside, else both ways.
    `adapter`: the diffusion adapter applies to these tokens. `store`: their keys and values are kept in the cache.
    `row`: roots only, the cache row it continues; it sees that row's positions ``[0, start)``.
    """

    start: int
    length: int
    parent: int | None = None
    offset: int | None = None
    causal: bool = True
    adapter: bool = False
    store: bool = False
    row: int | None = None


@dataclass(frozen=True)
class Island:
    """Packed tokens ``[begin, end)`` that attend to each other and to nothing else but `num_cached` positions of `row`.

    One root with all that grows from it; roots that stand in a row of the layout and continue the same cache row
    without storing (canvases at several places of one document) share an island. `segments`: indices of its segments.
    """

    segments: range
    begin: int
    end: int
    num_cached: int
    row: int | None


@dataclass(frozen=True)
class Layout:
    """Segments in packing order: a parent before its children, and every tree in one piece."""

    segments: tuple[Segment, ...]

    def __init__(self, segments: Sequence[Segment]) -> None:
        object.__setattr__(self, "segments", tuple(segments))
        for index, segment in enumerate(self.segments):
            self._check(index, segment)

    def _check(self, index: int, segment: Segment) -> None:
        def wrong(reason: str) -> ValueError:
            return ValueError(f"segment {index} {segment}: {reason}")

        if segment.length < 1 or segment.start < 0:
            raise wrong("length must be at least 1 and start at least 0")
        if segment.parent is None:
            if segment.offset is not None:
                raise wrong("a root has no parent to be offset in")
            if segment.row is None and (segment.store or segment.start):
                raise wrong("a root without a cache row starts at 0 and stores nothing")
            return
        if not 0 <= segment.parent < index:
            raise wrong("its parent must come before it")
        parent = self.segments[segment.parent]
        if segment.offset is None or not 0 <= segment.offset <= parent.length:
            raise wrong(f"offset must lie in [0, {parent.length}], the parent's length")
        if segment.row is not None:
            raise wrong("only a root names a cache row")
        if segment.store and self.root(index).row is None:
            raise wrong("its root has no cache row to store to")
        if self.root(index) is not self.root(index - 1):
            raise wrong("a root and all that grows from it must be packed in one piece")

    def root(self, index: int) -> Segment:
        """Return the root that a segment grows from, itself where it is one."""
        segment = self.segments[index]
        while segment.parent is not None:
            segment = self.segments[segment.parent]
        return segment

    @property
    def num_tokens(self) -> int:
        return int(self.bounds[-1])

    @cached_property
    def bounds(self) -> IntArray:
        """Packed index at which each segment begins, and the end of the last: (num_segments + 1,)."""
        return np.cumsum([0, *(segment.length for segment in self.segments)], dtype=np.int64)

    @cached_property
    def positions(self) -> IntArray:
        """Rotary position of every packed token: (N,)."""
        return np.concatenate([np.arange(s.start, s.start + s.length, dtype=np.int64) for s in self.segments])

    @cached_property
    def adapter_mask(self) -> BoolArray:
        """Whether the diffusion adapter applies to each packed token: (N,)."""
        return np.repeat([s.adapter for s in self.segments], [s.length for s in self.segments])

    @cached_property
    def islands(self) -> tuple[Island, ...]:
        """The groups of tokens that attention never leaves, in packing order."""
        islands: list[Island] = []
        for index, segment in enumerate(self.segments):
            begin, end = int(self.bounds[index]), int(self.bounds[index + 1])
            last = islands[-1] if islands else None
            joins = last is not None and segment.row is not None and segment.row == last.row
            if last is not None and (segment.parent is not None or joins):
                cached = max(last.num_cached, segment.start) if segment.parent is None else last.num_cached
                segments = range(last.segments.start, index + 1)
                if joins and any(self.segments[other].store for other in segments):
                    raise ValueError(
                        f"segment {index} {segment}: two roots of one cache row and one of them stores"
                    )
                islands[-1] = replace(last, segments=segments, end=end, num_cached=cached)
            else:
                islands.append(Island(range(index, index + 1), begin, end, segment.start, segment.row))
        return tuple(islands)

    def shape(self, island: Island) -> tuple[object, ...]:
        """Return all that decides an island's mask and stores; islands of equal shape differ in row and tokens only."""
        first = island.segments.start
        return (
            island.row is None,
            tuple(
                (
                    s.start,
                    s.length,
                    s.parent if s.parent is None else s.parent - first,
                    s.offset,
                    s.causal,
                    s.store,
                )
                for s in (self.segments[index] for index in island.segments)
            ),
        )

    def visible(self, query: int, key: int) -> bool:
        """Say whether packed token `query` may attend to packed token `key`, straight from the definition."""
        query_segment, key_segment = self._segment_of(query), self._segment_of(key)
        place = key - int(self.bounds[key_segment])
        if query_segment == key_segment:
            return not self.segments[query_segment].causal or key <= query
        index = query_segment
        while (parent := self.segments[index].parent) is not None:
            offset = self.segments[index].offset
            if parent == key_segment:
                return offset is not None and place < offset
            index = parent
        return False

    def visible_cached(self, query: int, position: int) -> bool:
        """Say whether packed token `query` may attend to this position of its root's cache row."""
        root = self.root(self._segment_of(query))
        return root.row is not None and position < root.start

    def _segment_of(self, token: int) -> int:
        return int(np.searchsorted(self.bounds, token, side="right")) - 1

    def mask(self, island: Island) -> BoolArray:
        """Return who sees whom on one island: (tokens, cached + tokens), `True` = may attend, cached ones first."""
        size = island.end - island.begin
        mask = np.zeros((size, island.num_cached + size), dtype=np.bool_)
        packed = mask[:, island.num_cached :]
        begins = self.bounds - island.begin
        for index in island.segments:
            segment = self.segments[index]
            rows = slice(begins[index], begins[index + 1])
            own = np.ones((segment.length, segment.length), dtype=np.bool_)
            packed[rows, rows] = np.tril(own) if segment.causal else own
            if segment.parent is None:
                mask[rows, : segment.start if segment.row is not None else 0] = True
            else:
                # A child sees its parent's tokens up to the offset, and whatever the parent sees outside itself.
                parent = begins[segment.parent]
                mask[rows, : island.num_cached + parent] = mask[parent, : island.num_cached + parent]
                packed[rows, parent : parent + segment.offset] = True
        return mask

    def is_causal(self, island: Island) -> bool:
        """Say whether an island is one causal segment with nothing cached: plain causal attention."""
        return (
            island.num_cached == 0
            and len(island.segments) == 1
            and self.segments[island.segments.start].causal
        )


def causal_layout(length: int, *, start: int = 0, row: int | None = None) -> Layout:
    """Return one causal root: AR training (no row), or prefill and AR decoding that store to a cache row."""
    return Layout([Segment(start, length, store=row is not None, row=row)])

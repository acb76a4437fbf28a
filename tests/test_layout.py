"""The layout's masks against its definition, written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.layout import Layout, Segment, causal_layout


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Several trees, some on cache rows, with segments attached anywhere in their tree."""
    segments: list[Segment] = []
    for tree in range(draw(st.integers(1, 3))):
        on_row = draw(st.booleans())
        begin = len(segments)
        start = draw(st.integers(0, 5)) if on_row else 0
        row = tree if on_row else None
        segments.append(Segment(start, draw(st.integers(1, 4)), causal=draw(st.booleans()), row=row))
        for _ in range(draw(st.integers(0, 4))):
            parent = draw(st.integers(begin, len(segments) - 1))
            above = segments[parent]
            offset = draw(st.integers(0, above.length))
            length, causal = draw(st.integers(1, 4)), draw(st.booleans())
            segments.append(Segment(above.start + offset, length, parent, offset, causal))
    return Layout(segments)


def sees(layout: Layout, query: tuple[int, int], key: tuple[int, int]) -> bool:
    """The sentence "visibility": own segment, and every ancestor up to the offset; tokens are (segment, place)."""
    (segment, place), (target, wanted) = query, key
    if segment == target:
        return wanted <= place or not layout.segments[segment].causal
    while layout.segments[segment].parent is not None:
        parent, offset = layout.segments[segment].parent, layout.segments[segment].offset
        if parent == target:
            return wanted < offset
        segment = parent
    return False


@given(layouts())
def test_mask_and_visible_say_what_the_definition_says(layout: Layout) -> None:
    tokens = [(s, place) for s, segment in enumerate(layout.segments) for place in range(segment.length)]
    covered = 0
    for island in layout.islands:
        mask = layout.mask(island)
        covered += island.end - island.begin
        for q in range(island.begin, island.end):
            for k, key in enumerate(tokens):
                expected = sees(layout, tokens[q], key)
                assert layout.visible(q, k) == expected
                if island.begin <= k < island.end:
                    assert mask[q - island.begin, island.num_cached + k - island.begin] == expected
                else:
                    assert not expected
            cached = [layout.visible_cached(q, position) for position in range(island.num_cached)]
            assert mask[q - island.begin, : island.num_cached].tolist() == cached
    assert covered == layout.num_tokens == len(tokens)


def test_canvases_on_one_row_share_an_island_and_see_the_cache_before_their_start() -> None:
    layout = Layout([Segment(start, 2, causal=False, row=0) for start in (3, 5)])
    (island,) = layout.islands
    expected = np.zeros((4, 5 + 4), dtype=bool)
    expected[:2, :3] = expected[2:, :5] = expected[:2, 5:7] = expected[2:, 7:] = True
    assert (layout.mask(island) == expected).all()


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([Segment(0, 0)], "length"),
        ([Segment(2, 1)], "without a cache row"),
        ([Segment(0, 1, store=True)], "without a cache row"),
        ([Segment(0, 2), Segment(3, 1, parent=0, offset=3)], "offset"),
        ([Segment(0, 2), Segment(1, 1, parent=1, offset=0)], "before it"),
        ([Segment(0, 2), Segment(0, 1), Segment(1, 1, parent=0, offset=1)], "one piece"),
        ([Segment(0, 2), Segment(1, 1, parent=0, offset=1, row=0)], "only a root"),
    ],
)
def test_impossible_segments_are_refused(segments: list[Segment], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Layout(segments)


def test_two_roots_of_a_row_cannot_both_run_when_one_stores() -> None:
    with pytest.raises(ValueError, match="stores"):
        _ = Layout([Segment(0, 2, store=True, row=0), Segment(2, 1, row=0)]).islands


def test_positions_flags_and_sizes() -> None:
    layout = Layout([Segment(4, 2, row=0), Segment(6, 3, parent=0, offset=2, causal=False, adapter=True)])
    assert layout.num_tokens == 5
    assert layout.positions.tolist() == [4, 5, 6, 7, 8]
    assert layout.adapter_mask.tolist() == [False, False, True, True, True]
    assert causal_layout(3, start=2, row=1).segments[0].store

"""Packing sequences that begin alike: every token in its place, seen by those that continue it and by nobody else."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unmask.evaluation.prefix_tree import pack

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12)


@given(SEQUENCES, st.integers(1, 40))
def test_every_token_sees_its_own_past_and_nothing_else(
    sequences: list[tuple[int, ...]], max_tokens: int
) -> None:
    packed = pack(sequences, max_tokens=max_tokens)
    found = {}
    for trees in packed:
        layout = trees.layout
        assert layout.num_tokens == len(trees.tokens)
        for number, places in trees.places.items():
            found[number] = tuple(trees.tokens[place] for place in places)
            assert layout.positions[places].tolist() == list(range(len(places)))
            for depth, place in enumerate(places):
                visible = [key for key in range(layout.num_tokens) if layout.visible(int(place), key)]
                assert visible == sorted(places[: depth + 1].tolist())
    assert [found[number] for number in range(len(sequences))] == sequences


@given(SEQUENCES, st.integers(1, 40))
def test_no_forward_is_longer_than_it_may_be(sequences: list[tuple[int, ...]], max_tokens: int) -> None:
    for trees in pack(sequences, max_tokens=max_tokens):
        assert len(trees.tokens) <= max(max_tokens, *(len(path) for path in trees.places.values()))


def test_what_sequences_share_is_there_once() -> None:
    context = tuple(range(100, 120))
    sequences = [(*context, 1, 2, 3), (*context, 1, 2, 4), (*context, 5), context, (7, 8)]
    (trees,) = pack(sequences, max_tokens=1000)
    assert len(trees.tokens) == 20 + 2 + 1 + 1 + 1 + 2
    shared = [trees.places[number][:20] for number in range(4)]
    assert all(np.array_equal(one, other) for one, other in pairwise(shared))


def test_sequences_with_little_in_common_are_trees_of_their_own() -> None:
    (trees,) = pack([(1, *range(10, 20)), (1, *range(20, 30))], max_tokens=1000)
    assert [island.end - island.begin for island in trees.layout.islands] == [11, 11]

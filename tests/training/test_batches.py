"""Packing keeps documents apart, and every token has its turn."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.training.batches import Batch, Packs, Pieces
from unmask.training.shards import Split

START = 1_000_000


def split_of(lengths: list[int], num_shards: int = 1) -> Split:
    """Return documents in which every stored token has a number of its own."""
    tokens = np.arange(sum(lengths), dtype=np.uint32)
    ends = np.cumsum(lengths)
    cuts = [int(ends[len(lengths) * part // num_shards - 1]) for part in range(1, num_shards)]
    return Split(tuple(np.split(tokens, cuts)), ends, np.array(lengths))


def rows(batch: Batch) -> list[list[int]]:
    return [batch.tokens[a:b].tolist() for a, b in zip(batch.bounds, batch.bounds[1:], strict=False)]


documents = st.lists(st.integers(1, 40), min_size=4, max_size=30)


@given(documents, st.integers(1, 20), st.integers(0, 30), st.integers(0, 9), st.integers(1, 3))
def test_an_epoch_has_every_token_once_and_no_row_mixes_documents(
    lengths: list[int], length: int, room: int, seed: int, num_shards: int
) -> None:
    split = split_of(lengths, num_shards)
    packs = Packs(split, length=length, num_tokens=length + 1 + room, start_token_id=START, seed=seed)
    for epoch in range(2):
        first = sum(packs.num_in_epoch(earlier) for earlier in range(epoch))
        seen: list[int] = []
        for number in range(first, first + packs.num_in_epoch(epoch)):
            batch = packs[number]
            assert len(batch.tokens) <= length + 1 + room
            assert batch.num_scored == packs.num_scored(number)
            for row in rows(batch):
                assert row[0] == START
                assert 1 <= len(row) - 1 <= length
                assert row[1:] == list(range(row[1], row[-1] + 1))
                owners = set(np.searchsorted(split.ends, row[1:], side="right").tolist())
                assert len(owners) == 1
                seen += row[1:]
        assert Counter(seen) == Counter(range(sum(lengths)))


@given(documents, st.integers(1, 20))
def test_documents_are_cut_from_their_start(lengths: list[int], length: int) -> None:
    pieces = Pieces.cut(np.cumsum(lengths), length)
    sizes = iter(pieces.sizes.tolist())
    for document in lengths:
        left = document
        while left:
            assert next(sizes) == min(left, length)
            left -= min(left, length)


def test_the_order_depends_on_the_seed_and_the_number_alone() -> None:
    split = split_of([9] * 40)

    def packs(seed: int) -> Packs:
        return Packs(split, length=9, num_tokens=20, start_token_id=START, seed=seed)

    straight, again = packs(0), packs(0)
    numbers = range(3 * straight.num_in_epoch(0))
    in_order = [rows(straight[number]) for number in numbers]
    backwards = [rows(again[number]) for number in reversed(numbers)]
    assert in_order == backwards[::-1]
    assert [rows(packs(1)[number]) for number in numbers] != in_order
    epoch = straight.num_in_epoch(0)
    assert in_order[:epoch] != in_order[epoch : 2 * epoch]


def test_rows_of_one_length_lie_side_by_side() -> None:
    batch = Packs(split_of([3, 9, 3, 9, 5]), length=9, num_tokens=99, start_token_id=START, seed=0)[0]
    sizes = np.diff(batch.bounds).tolist()
    assert sizes == sorted(sizes, reverse=True)


def test_a_batch_must_hold_a_whole_piece() -> None:
    with pytest.raises(ValueError, match="num_tokens=9 must exceed length=9"):
        Packs(split_of([3]), length=9, num_tokens=9, start_token_id=START, seed=0)

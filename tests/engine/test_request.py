"""A request's own arithmetic: what it wants next, and what its tokens are, mode by mode."""

import pytest
from plain_requests import Words, plain_request

from unmask.engine.pages import PagePool
from unmask.engine.request import Request


def test_decided_tokens_are_prompt_and_answer_in_one_line() -> None:
    request = plain_request(PagePool(8, 2), prompt=(1, 2, 3))
    for token in (4, 5, 6):
        request.take_next(token)
    assert [request.decided(begin, end) for begin, end in ((0, 6), (2, 5), (3, 4), (0, 2))] == [
        [1, 2, 3, 4, 5, 6],
        [3, 4, 5],
        [4],
        [1, 2],
    ]


def test_an_autoregressive_request_steps() -> None:
    request = plain_request(PagePool(8, 2), limit=3)
    seen = []
    while not request.is_finished:
        seen.append((request.kind, request.first, request.base, request.num_open, request.decode_number))
        request.table.reserve(request.base)
        request.store(request.base)
        request.take_next(7)
    assert seen == [("step", 0, 3, 0, 0), ("step", 3, 4, 0, 1), ("step", 4, 5, 0, 2)]
    assert written(request).decided_at == [0, 1, 2]


@pytest.mark.parametrize("looks_back", [True, False])
def test_a_block_is_denoised_then_stored_by_a_step(looks_back: bool) -> None:
    request = plain_request(PagePool(8, 2), mode="diffusion", limit=6, looks_back=looks_back)
    request.table.reserve(9)
    request.store(3)
    request.take_next(10)
    assert (request.kind, request.base, request.first, request.num_open) == ("denoise", 4, 3, 4)
    request.store(4)
    request.commit({1: 11, 3: 13})
    assert (request.canvas, request.num_leading) == ([None, 11, None, 13], 0)
    assert (request.base, request.first, request.num_open) == (4, 3 if looks_back else 4, 4)
    request.commit({0: 14})
    assert (request.base, request.num_decided, request.num_leading) == (4, 6, 2)
    request.commit({2: 15})
    assert (request.kind, request.canvas) == ("step", [])
    assert (request.first, request.base) == (4, 8)
    request.store(8)
    request.take_next(16)
    assert request.is_finished
    assert written(request).token_ids == [10, 14, 11, 15, 13, 16]
    assert written(request).decided_at == [0, 2, 1, 3, 1, 4]


def test_without_causal_laws_the_next_canvas_stores_the_last_one() -> None:
    request = plain_request(
        PagePool(8, 2), mode="diffusion", block_length=2, looks_back=False, predicts_next=False
    )
    assert (request.kind, request.first, request.base, request.decode_number) == ("denoise", 0, 3, 1)
    request.table.reserve(3)
    request.store(3)
    request.commit({0: 10, 1: 11})
    assert (request.kind, request.first, request.base, request.num_open) == ("denoise", 3, 5, 2)


def test_the_budget_of_steps_is_each_blocks_own() -> None:
    request = plain_request(PagePool(8, 2), mode="diffusion", block_length=2, num_steps=3)
    request.take_next(9)
    left = []
    for place in (0, 1):
        left.append(request.steps_left)
        request.commit({place: 9})
    request.take_next(9)
    assert [*left, request.steps_left] == [3, 2, 3]


def test_drafts_are_verified_and_what_was_accepted_counts_as_stored() -> None:
    request = plain_request(PagePool(8, 2), mode="speculative", limit=10)
    request.table.reserve(8)
    request.store(3)
    request.take_next(10)
    assert (request.kind, request.first, request.base, request.num_open) == ("draft", 3, 4, 4)
    request.store(4)
    request.propose([11, 12, 13, 14])
    assert (request.kind, request.first, request.base, request.num_open) == ("verify", 4, 4, 4)
    request.accept(2, 20)
    assert written(request).token_ids == [10, 11, 12, 20]
    assert written(request).decided_at == [0, 2, 2, 2]
    assert (request.kind, request.first, request.base, request.num_stored) == ("draft", 6, 7, 6)


def test_the_last_token_of_speculation_is_a_step_and_the_last_drafts_leave_room_for_it() -> None:
    request = plain_request(PagePool(8, 2), mode="speculative", limit=4)
    request.take_next(10)
    assert (request.kind, request.num_open) == ("draft", 2)
    request.propose([11, 12])
    request.table.reserve(6)
    request.accept(1, 20)
    assert (request.kind, request.written.room) == ("step", 1)


def test_drafts_behind_a_stop_are_stored_and_never_published() -> None:
    pool = PagePool(8, 2)
    request = plain_request(pool, mode="speculative", stop=0)
    request.take_next(10)
    request.table.reserve(8)
    request.propose([11, 0, 13, 14])
    request.accept(4, 20)
    assert written(request).token_ids == [10, 11, 0]
    assert (request.num_stored, request.table.num_published) == (8, 3)
    pool.check([request.table])


def test_forgetting_keeps_what_is_decided_open_and_drafted() -> None:
    pool = PagePool(8, 2)
    request = plain_request(pool, mode="diffusion")
    request.table.reserve(4)
    request.take_next(10)
    request.store(4)
    request.commit({0: 11, 2: 13})
    request.forget_stored()
    assert (request.first, request.base, request.num_open, request.canvas) == (0, 4, 4, [11, None, 13, None])
    assert pool.num_available == 8


def test_a_decided_place_cannot_be_decided_again() -> None:
    request = plain_request(PagePool(8, 2), mode="diffusion")
    request.take_next(10)
    request.commit({1: 11})
    with pytest.raises(ValueError, match="place 1 is decided"):
        request.commit({1: 12})


def test_the_mode_may_change_between_canvases_only() -> None:
    request = plain_request(PagePool(8, 2), mode="speculative")
    seen = [request.is_between]
    request.take_next(10)
    seen.append(request.is_between)
    request.propose([1, 2, 3, 4])
    seen.append(request.is_between)
    assert seen == [False, True, False]


def written(request: Request) -> Words:
    assert isinstance(request.written, Words)
    return request.written

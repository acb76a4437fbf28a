"""Canvases tile a document and open what they should."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.training.blocks import BlockConfig, cut, draft_lengths, is_draft
from unmask.training.documents import Document

MASK = 1000


@given(st.integers(20, 90), st.integers(0, 2**31), st.floats(0, 1))
def test_canvases_follow_one_another_and_only_hide_tokens(length: int, seed: int, share: float) -> None:
    config = BlockConfig((4, 8), share)
    document = list(range(length))
    canvases = cut(Document.of_text(document), 3, MASK, config, np.random.default_rng(seed))
    assert 1 <= canvases[0].start <= 8
    for canvas in canvases:
        assert canvas.row == 3
        assert len(canvas.tokens) <= 8
        hidden = canvas.tokens == MASK
        assert hidden.any()
        shown = torch.tensor(document[canvas.start : canvas.start + len(canvas.tokens)])
        assert torch.equal(canvas.tokens[~hidden], shown[~hidden])
        assert share != 1 or is_draft(canvas, MASK)
    for canvas, following in pairwise(canvases):
        assert following.start == canvas.start + len(canvas.tokens)


def test_phases_and_lengths_vary() -> None:
    config = BlockConfig((4, 8, 16), 0.5)
    generator = np.random.default_rng(0)
    cuts = [cut(Document.of_text(list(range(200))), 0, MASK, config, generator) for _ in range(50)]
    assert len({canvases[0].start for canvases in cuts}) > 10
    assert {len(canvas.tokens) for canvases in cuts for canvas in canvases[:-1]} == {4, 8, 16}
    drafts = [is_draft(canvas, MASK) for canvases in cuts for canvas in canvases]
    assert 0.45 < np.mean(drafts) < 0.65


def test_draft_lengths_count_the_run_before_the_first_error() -> None:
    agrees = torch.tensor([True, True, False, True, False, True, True])
    canvas = torch.tensor([0, 0, 0, 0, 2, 5, 5])
    assert draft_lengths(agrees, canvas, 7).tolist() == [2, 0, 0, 0, 0, 2, 0]


@given(st.integers(0, 2**31))
def test_canvases_keep_to_what_is_learnt(seed: int) -> None:
    document = Document(list(range(60)), ((5, 10), (20, 22), (30, 60)))
    canvases = cut(document, 0, MASK, BlockConfig((4, 8), 0.5), np.random.default_rng(seed))
    spans = [(canvas.start, canvas.start + len(canvas.tokens)) for canvas in canvases]
    assert all(any(begin <= a and b <= end for begin, end in document.learnt) for a, b in spans)
    assert {begin for begin, end in document.learnt for a, _ in spans if begin <= a < end} == {5, 30}

"""The canvas keeps what is decided."""

import pytest
import torch

from unmask.decoding.canvas import Canvas


def test_commit() -> None:
    canvas = Canvas.blank(4, mask_token_id=99)
    assert (canvas.tokens.tolist(), int(canvas.num_leading)) == ([99] * 4, 0)
    tokens = torch.tensor([5, 6, 7, 8])
    canvas = canvas.commit(torch.tensor([True, False, True, False]), tokens, step=3)
    assert canvas.tokens.tolist() == [5, 99, 7, 99]
    assert canvas.open.tolist() == [False, True, False, True]
    assert canvas.decided_at.tolist() == [3, -1, 3, -1]
    assert int(canvas.num_leading) == 1
    canvas = canvas.commit(canvas.open, tokens + 10, step=4)
    assert canvas.tokens.tolist() == [5, 16, 7, 18]
    assert int(canvas.num_leading) == 4


def test_decided_positions_cannot_change() -> None:
    chosen = torch.tensor([True, False])
    canvas = Canvas.blank(2, 9).commit(chosen, torch.tensor([1, 2]), step=1)
    with pytest.raises(ValueError, match=r"\[\[0\]\] are decided"):
        canvas.commit(chosen, torch.tensor([3, 4]), step=2)


def test_batches_of_canvases() -> None:
    open_ = torch.tensor([[False, True, False], [False, False, False]])
    canvas = Canvas(torch.zeros(2, 3, dtype=torch.long), open_, torch.zeros(2, 3, dtype=torch.long))
    assert canvas.num_leading.tolist() == [1, 3]

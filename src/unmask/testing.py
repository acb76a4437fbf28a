"""Checks that rules, denoisers, processes and schedules must pass, ours and those of other packages."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import zip_longest

import torch

from unmask.decoding.generate import generate
from unmask.decoding.options import Options
from unmask.decoding.rules import Rule, View, choose
from unmask.diffusion.checks import check_process, check_schedule
from unmask.model.denoiser import Denoiser
from unmask.tokenizer import Tokenizer

__all__ = ["check_lossless", "check_process", "check_rule", "check_schedule"]


def check_rule(rule: Rule, *, num_views: int = 50) -> None:
    """Raise AssertionError unless a rule keeps its contract on random views.

    It selects booleans and ranks by floats, leaves the view as it was, answers the same twice, and does not let
    one row influence another. Under `choose` it makes progress, touches open positions only and keeps any budget.
    """
    for view in _views(num_views, rule.memory):
        before = _copy(view)
        selected, priority = rule.select(view), rule.priority(view)
        shape = view.open.shape
        assert selected.shape == shape, f"{rule}: select gave {tuple(selected.shape)} for {tuple(shape)}"
        assert selected.dtype == torch.bool, f"{rule}: select gave {selected.dtype}"
        assert priority.shape == shape, f"{rule}: priority gave {tuple(priority.shape)} for {tuple(shape)}"
        assert priority.is_floating_point(), f"{rule}: priority gave {priority.dtype}"
        assert _equal(view, before), f"{rule} changes its view"
        assert torch.equal(selected, rule.select(view)), f"{rule} answers the same view differently"
        for row in range(len(view.open)):
            alone, where = rule.select(_row(view, row))[0], view.open[row]
            assert torch.equal(alone[where], selected[row][where]), f"{rule} lets rows influence each other"
        chosen = choose(rule, view)
        assert not (chosen & ~view.open).any(), f"{rule}: a decided position was chosen"
        assert (chosen.any(-1) == view.open.any(-1)).all(), f"{rule}: no progress"
        _check_budget(rule, view)


def check_lossless(
    denoiser: Denoiser, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], options: Options
) -> None:
    """Raise AssertionError unless greedy speculation writes what the autoregressive mode writes.

    `options`: of mode 'speculative' and temperature 0. Every prompt must give the same tokens, the same text and
    the same finish reason.
    """
    if options.mode != "speculative" or options.temperature != 0:
        raise ValueError(f"check_lossless needs greedy options of mode 'speculative', not {options}")
    steps = replace(options, mode="ar", block_length=None, tree_size=None, num_predrafts=None)
    for index, prompt in enumerate(prompts):
        ours = generate(denoiser, tokenizer, prompt, options)
        truth = generate(denoiser, tokenizer, prompt, steps)
        if ours.token_ids != truth.token_ids:
            pairs = enumerate(zip_longest(ours.token_ids, truth.token_ids))
            place, (token, wanted) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
            raise AssertionError(
                f"prompt {index}: token {place} is {token}, the autoregressive one is {wanted}"
            )
        assert ours.text == truth.text, f"prompt {index}: same tokens, but not the same text"
        assert ours.finish_reason == truth.finish_reason, f"prompt {index}: not the same finish reason"


def _check_budget(rule: Rule, view: View) -> None:
    """Run every row's block to its end and count the steps."""
    view = _copy(view)
    while view.open.any():
        view = replace(
            view,
            open=view.open & ~choose(rule, view),
            steps_left=tuple(None if left is None else left - 1 for left in view.steps_left),
            steps=tuple(step + 1 for step in view.steps),
        )
        late = [left == 0 and bool(row.any()) for left, row in zip(view.steps_left, view.open, strict=True)]
        assert not any(late), f"{rule}: positions are open after the last step of the budget"


def _views(count: int, memory: int) -> Iterator[View]:
    generator = torch.Generator().manual_seed(0)

    def integers(least: int, most: int, size: int) -> list[int]:
        return torch.randint(least, most + 1, (size,), generator=generator).tolist()

    for _ in range(count):
        rows, length = integers(1, 4, 1)[0], integers(1, 12, 1)[0]
        shape = (rows, length)
        # Coarse values make ties, the case that goes wrong first.
        values = [torch.randint(0, 6, shape, generator=generator) / 5 for _ in range(3)]
        starts = torch.tensor(integers(0, 1000, rows))
        yield View(
            open=torch.rand(shape, generator=generator) < 0.7,
            confidence=values[0],
            entropy=values[1] * 3,
            margin=values[2],
            positions=starts[:, None] + torch.arange(length),
            seeds=tuple(integers(0, 9, rows)),
            steps=tuple(integers(1, 99, rows)),
            steps_left=tuple(left or None for left in integers(0, 6, rows)),
            changes=torch.randint(0, 3, (*shape, memory), generator=generator) / 200,
        )


def _copy(view: View) -> View:
    return replace(
        view,
        open=view.open.clone(),
        confidence=view.confidence.clone(),
        entropy=view.entropy.clone(),
        margin=view.margin.clone(),
        positions=view.positions.clone(),
        changes=view.changes.clone(),
    )


def _row(view: View, row: int) -> View:
    rows = slice(row, row + 1)
    return View(**{item.name: getattr(view, item.name)[rows] for item in fields(view)})


def _equal(one: View, other: View) -> bool:
    pairs = [(getattr(one, item.name), getattr(other, item.name)) for item in fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)

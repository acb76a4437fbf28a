"""One step of unmasking: a candidate at every open position, and a rule's choice among them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unmask.decoding.candidates import Candidates, Keys, Shaping, propose
from unmask.decoding.rules import Rule, View, choose, leading
from unmask.decoding.text_law import TextLaw
from unmask.rng import Stream

Confidence = Literal["drawn", "highest"]
"""Whose probability a rule sees as confidence.

`drawn`: the candidate's, so tokens are drawn first and then selected. `highest`: the most probable token's, so
positions are selected by the law alone and tokens drawn afterwards, and every text has one way to be written, whose
probability `evaluation.likelihood.duel_nll` computes. Greedy decoding does not tell them apart.
"""


class Drift:
    """How much the laws of one canvas move from forward to forward; the state of a rule with a memory."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._last: Tensor | None = None
        self._changes: Tensor | None = None

    def update(self, logits: Tensor) -> Tensor:
        """Return KL(this law || the one before) in nats for the last H forwards, newest first: (..., V) -> (..., H).

        H is the memory. Where there was no such forward the divergence is infinite. The result is on CPU.
        """
        if not self._memory:
            return torch.zeros(*logits.shape[:-1], 0)
        law = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        if self._last is None or self._changes is None:
            self._changes = torch.full((*logits.shape[:-1], self._memory), torch.inf)
        else:
            change = (law.exp() * (law - self._last)).where(law > -torch.inf, 0).sum(-1)
            self._changes = torch.cat([change.cpu()[..., None], self._changes[..., :-1]], dim=-1)
        self._last = law
        return self._changes


@dataclass(frozen=True)
class Decision:
    """What to commit now: `chosen` (B, L) bool, open positions only, and the (B, L) candidates; all on CPU."""

    chosen: Tensor
    candidates: Candidates


def decide(
    rule: Rule,
    logits: Tensor,
    is_open: Tensor,
    shaping: Shaping,
    keys: Keys,
    *,
    steps_left: tuple[int | None, ...],
    changes: Tensor,
    confidence: Confidence = "drawn",
) -> Decision:
    """Draw a candidate at each open (B, L) position from its (B, L, V) logits, and let the rule choose among them.

    `steps_left`: of each canvas, as in `View`. `changes`: what `Drift` says of these logits.
    """
    where = is_open.cpu()
    candidates = propose(logits[where.to(logits.device)], shaping, keys.noise(Stream.TOKEN)[where]).spread(
        where
    )
    return decide_among(
        rule, candidates, where, keys, steps_left=steps_left, changes=changes, confidence=confidence
    )


def decide_after(
    text_law: TextLaw,
    rule: Rule,
    logits: Tensor,
    canvas: Sequence[int | None],
    keys: Keys,
    *,
    steps_left: int | None,
    drift: Drift,
) -> Decision:
    """Do as `decide` for one canvas that continues a text: (L, V) logits, its L tokens, `None` where open.

    Under a constraint whatever is decided continues the valid text: candidates follow one another, and of the rule's
    choice only what comes before the first place it leaves open is taken, or as much as a budget of steps requires.
    """
    where = torch.tensor([[token is None for token in canvas]])
    first = int(where[0].long().argmax())
    ahead = [token for token in canvas[first:] if token is not None]  # what stands before is in the text
    noise = keys.noise(Stream.TOKEN)[where].to(logits.device)
    candidates, num_sound = text_law.propose(logits[where[0].to(logits.device)], noise, ahead)
    decision = decide_among(
        rule,
        candidates.spread(where),
        where,
        keys,
        steps_left=(steps_left,),
        changes=drift.update(logits[None]),
        from_the_left=text_law.is_constrained,
    )
    return replace(decision, chosen=decision.chosen & (where.cumsum(-1) <= num_sound))


def decide_among(
    rule: Rule,
    candidates: Candidates,
    is_open: Tensor,
    keys: Keys,
    *,
    steps_left: tuple[int | None, ...],
    changes: Tensor,
    confidence: Confidence = "drawn",
    from_the_left: bool = False,
) -> Decision:
    """Let the rule choose among candidates (B, L) that were drawn at the open positions; all on CPU.

    `from_the_left`: nothing is decided behind an open position.
    """
    view = View(
        open=is_open,
        confidence=candidates.confidence if confidence == "drawn" else candidates.highest,
        entropy=candidates.entropy,
        margin=candidates.margin,
        positions=keys.positions,
        seeds=keys.seeds,
        steps=keys.steps,
        steps_left=steps_left,
        changes=changes,
    )
    chosen = choose(rule, view)
    if from_the_left:
        num_left_open = (is_open & ~chosen).cumsum(-1)
        run = (is_open & (num_left_open == 0)).sum(-1)
        chosen = leading(torch.zeros(is_open.shape), is_open, torch.maximum(run, view.num_required()))
    return Decision(chosen, candidates)

"""The planner: how to spend the next forwards, by what they cost here and how far drafts are accepted.

Autoregressive steps and speculation write the same law, so a request may change between them whenever nothing is
drafted. Speculation spends tokens of a forward to save forwards: it pays while a forward of more tokens costs hardly
more, which is so for one request and not for a crowd.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from unmask.engine.acceptance import Acceptance
from unmask.engine.cost_curve import CostCurve
from unmask.engine.request import Request

BLOCK_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""What the planner chooses from; a request's own block length is the most."""

_PROBE_INTERVAL = 64  # steps
_PROBE_LENGTH = 4
_SMOOTHING = 0.8  # how much of what others did in earlier forwards counts beside the last one


@dataclass(frozen=True)
class Choice:
    """What each planned request does next, by number: a block length, or 0 for a step; and the expected tokens/s."""

    block_lengths: dict[int, int]
    tokens_per_s: float


@dataclass
class Planner:
    """Chooses between steps and drafts, and how long, for the most tokens per second over the batch at hand.

    `curve`: what forwards cost. `overall`: acceptance over all requests, on which each request's own builds.
    `other_tokens`, `other_rate`: what the requests that are not planned add to a forward, and decide in one.
    """

    curve: CostCurve = field(default_factory=CostCurve)
    overall: Acceptance = field(default_factory=Acceptance)
    other_tokens: float = 0.0
    other_rate: float = 0.0
    _own: dict[int, Acceptance] = field(default_factory=dict)
    _num_steps: dict[int, int] = field(default_factory=dict)

    def plan(self, limits: Mapping[Request, int]) -> Choice:
        """Set the mode and block length of these requests where nothing is open; `limits`: the longest block of each.

        Before forwards of two sizes have been measured there is nothing to go by, and short blocks are drafted.
        """
        room = {r.number: max(0, min(limit, r.written.room - 1)) for r, limit in limits.items()}
        if self.curve.is_known:
            choice = self.choose(room)
        else:
            choice = Choice({number: min(limit, _PROBE_LENGTH) for number, limit in room.items()}, 0.0)
        for request in limits:
            if request.is_between:
                length = self._probe(request.number, choice, room[request.number])
                request.mode, request.block_length = ("speculative", length) if length else ("ar", 0)
        return choice

    def choose(self, limits: Mapping[int, int]) -> Choice:
        """Choose for the requests of `limits`, by number: the longest block that each may draft.

        All that draft share a block length, as far as their limits go. Those that gain most tokens for a token run
        draft first, and the rest step.
        """
        best = Choice(dict.fromkeys(limits, 0), self._rate(len(limits), 0.0, 0.0))
        expected = {number: self._of(number).expected_tokens(limit) for number, limit in limits.items()}
        longest = max(limits.values(), default=0)
        for length in BLOCK_LENGTHS[: bisect_left(BLOCK_LENGTHS, longest) + 1]:
            lengths = {number: min(length, limit) for number, limit in limits.items() if limit}

            def gain(number: int, lengths: dict[int, int] = lengths) -> float:
                return (expected[number][lengths[number]] - 2) / lengths[number]

            decided = tokens = 0.0
            drafting: list[int] = []
            for number in sorted(lengths, key=gain, reverse=True):
                drafting.append(number)
                decided += expected[number][lengths[number]] / 2
                tokens += _tokens_per_forward(lengths[number])
                rate = self._rate(len(limits) - len(drafting), decided, tokens)
                if rate > best.tokens_per_s:
                    chosen = dict.fromkeys(limits, 0) | {other: lengths[other] for other in drafting}
                    best = Choice(chosen, rate)
        return best

    def observe_forward(self, tokens: int, seconds: float, *, other_tokens: int, other_decided: int) -> None:
        """Take a forward's measurement, and what requests that are not planned had of it."""
        self.curve.observe(tokens, seconds)
        self.other_tokens = _SMOOTHING * self.other_tokens + (1 - _SMOOTHING) * other_tokens
        self.other_rate = _SMOOTHING * self.other_rate + (1 - _SMOOTHING) * other_decided

    def observe_draft(self, number: int, num_drafted: int, num_accepted: int) -> None:
        """Take the verdict on a request's draft."""
        self.overall.observe(num_drafted, num_accepted)
        self._of(number).observe(num_drafted, num_accepted)

    def forget(self, number: int) -> None:
        """Drop what is known of a request that is gone."""
        self._own.pop(number, None)
        self._num_steps.pop(number, None)

    def _rate(self, steppers: int, decided: float, tokens: float) -> float:
        """Return tokens per second where drafters run `tokens` in a forward for `decided`; a step is one of each."""
        seconds = self.curve.seconds(self.other_tokens + steppers + tokens)
        return (self.other_rate + steppers + decided) / seconds

    def _probe(self, number: int, choice: Choice, limit: int) -> int:
        """Return the chosen block length, or a probe after many steps, if drafts that all hold would pay."""
        length = choice.block_lengths[number]
        self._num_steps[number] = 0 if length else self._num_steps.get(number, 0) + 1
        if self._num_steps[number] < _PROBE_INTERVAL or not limit:
            return length
        self._num_steps[number] = 0
        probe = min(limit, _PROBE_LENGTH)
        num_others = len(choice.block_lengths) - 1
        drafting = self._rate(num_others, (probe + 1) / 2, _tokens_per_forward(probe))
        would_pay = drafting > self._rate(num_others + 1, 0.0, 0.0)
        return probe if would_pay else 0

    def _of(self, number: int) -> Acceptance:
        return self._own.setdefault(number, Acceptance(self.overall))


def _tokens_per_forward(length: int) -> float:
    """Return what a drafter adds to a forward: a cycle is two, of the last token and the drafts, and of the drafts.

    Requests are out of step with each other, so both forwards cost like their mean.
    """
    return (1 + 2 * length) / 2

"""The planner: how to spend the next forwards, by what they cost here and how far drafts are accepted.

Autoregressive steps and speculation write the same law, so a request may change between them whenever nothing is
drafted. Speculation spends tokens of a forward to save forwards: it pays while a forward of more tokens costs hardly
more, which is so for one request and not for a crowd. Trees and pre-drafts spend more tokens to save more forwards.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from unmask.engine.acceptance import Experience, Verdict
from unmask.engine.cost_curve import CostCurve
from unmask.engine.request import Request

BLOCK_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""What the planner chooses from; a request's own block length is the most."""

FUSED_LENGTHS = (4, 8, 16, 32)
BRANCHINGS = (0, 2, 4)
NUMS_PREDRAFTS = (0, 1, 2, 4, 8)

_PROBE_INTERVAL = 64  # steps
_PROBE_LENGTH = 4
_SMOOTHING = 0.8  # how much of what others did in earlier forwards counts beside the last one
_MARGIN = 1.02  # what a tree or pre-drafts have to promise beyond the best without
_BESIDE_MEMORY = 50.0  # forwards, after which what one cost beside its tokens has faded to 1/e
_FEWEST_FREE = 4.0  # as if so many had cost nothing beside
_REUSED = 8  # steps for which a choice stands while nothing is learnt of drafts


@dataclass(frozen=True)
class Way:
    """How a planned request goes on: in steps, or in drafts of `block_length` places, 0 for steps.

    `branching`: a draft is a tree of so many times as many candidates; 0 for one at each place. `num_predrafts`: how
    many next drafts run beside a verification.
    """

    block_length: int = 0
    branching: int = 0
    num_predrafts: int = 0

    @property
    def is_linear(self) -> bool:
        return not self.branching and not self.num_predrafts

    @property
    def num_candidates(self) -> int:
        return max(1, self.branching) * self.block_length

    @property
    def num_open(self) -> int:
        """The most tokens that a verification runs beside what is decided."""
        return self.num_candidates + self.num_predrafts * self.block_length

    def within(self, limit: int) -> "Way":
        """Return this way with blocks of at most `limit`; a pre-draft of one place would say nothing."""
        length = min(self.block_length, limit)
        return replace(self, block_length=length, num_predrafts=self.num_predrafts if length > 1 else 0)


STEP = Way()

_FUSED = tuple(
    way
    for length in FUSED_LENGTHS
    for branching in BRANCHINGS
    for num_predrafts in NUMS_PREDRAFTS
    if not (way := Way(length, branching, num_predrafts)).is_linear
)


@dataclass(frozen=True)
class Choice:
    """What each planned request does next, by number, and the expected tokens per second."""

    ways: dict[int, Way]
    tokens_per_s: float


@dataclass(frozen=True)
class _Outlook:
    """What a drafter is expected to decide in a forward, and what it adds to its two kinds of forwards.

    `drafting`: the share of its forwards that draft, and add `draft_tokens`; the others verify.
    """

    decided: float
    drafting: float
    draft_tokens: float
    verify_tokens: float

    @property
    def tokens(self) -> float:
        return self.drafting * self.draft_tokens + (1 - self.drafting) * self.verify_tokens


@dataclass
class Beside:
    """Seconds that a request of a kind adds to a forward beside what its tokens cost: a mean that fades."""

    seconds: float = 0.0
    _weight: float = _FEWEST_FREE

    def observe(self, seconds: float) -> None:
        """Take one measurement."""
        self._weight = min(self._weight, _BESIDE_MEMORY) + 1
        self.seconds += (seconds - self.seconds) / self._weight

    @property
    def cost(self) -> float:
        return max(0.0, self.seconds)


@dataclass
class Planner:
    """Chooses between steps and drafts, how long and how wide, for the most tokens per second over the batch at hand.

    `curve`: what forwards cost. `overall`: experience with all requests, on which each request's own builds.
    `plans_trees`: whether trees and pre-drafts may be chosen; the engine sets it by its model. `most_open`: of a
    verification, where the engine's budget sets a bound. `canvas`: what the adapter on a request's canvas costs in a
    forward, `tree`: what else a request with a tree or pre-drafts does. `other_tokens`, `other_rate`: what the requests
    that are not planned add to a forward, and decide in one.
    """

    curve: CostCurve = field(default_factory=CostCurve)
    overall: Experience = field(default_factory=Experience)
    plans_trees: bool = True
    most_open: float = inf
    canvas: Beside = field(default_factory=Beside)
    tree: Beside = field(default_factory=Beside)
    other_tokens: float = 0.0
    other_rate: float = 0.0
    _last: tuple[dict[int, int], Choice] | None = None
    _num_reused: int = 0
    _own: dict[int, Experience] = field(default_factory=dict)
    _num_steps: dict[int, int] = field(default_factory=dict)

    def plan(self, limits: Mapping[Request, int]) -> Choice:
        """Set the mode and block length of these requests where nothing is open; `limits`: the longest block of each.

        Before forwards of two sizes have been measured there is nothing to go by, and short blocks are drafted.
        """
        room = {r.number: max(0, min(limit, r.written.room - 1)) for r, limit in limits.items()}
        if self.curve.is_known:
            choice = self._choose_again(room)
        else:
            choice = Choice({number: Way(min(limit, _PROBE_LENGTH)) for number, limit in room.items()}, 0.0)
        ways = dict(choice.ways)
        for request in limits:
            if request.is_between:
                way = ways[request.number] = self._probe(request.number, choice, room[request.number])
                request.mode = "speculative" if way.block_length else "ar"
                request.block_length = way.block_length
        return Choice(ways, choice.tokens_per_s)

    def _choose_again(self, limits: dict[int, int]) -> Choice:
        """Return what `choose` said some steps ago, if it was asked the same and no draft was verified since."""
        self._num_reused += 1
        if self._last is None or self._last[0] != limits or self._num_reused >= _REUSED:
            self._last, self._num_reused = (limits, self.choose(limits)), 0
        return self._last[1]

    def choose(self, limits: Mapping[int, int]) -> Choice:
        """Choose for the requests of `limits`, by number: the longest block that each may draft.

        First the best of drafts without trees and pre-drafts: all that draft share a block length, as far as their
        limits go; those that gain most tokens for a token run draft first, and the rest step. Then, for those that
        draft there, or for all where nobody does, whether a tree or pre-drafts are better still; of several requests
        that is judged by what all have seen.
        """
        linear = best = self._choose_linear(limits)
        drafting = [number for number, way in best.ways.items() if way.block_length] or [*limits]
        drafting = [number for number in drafting if limits[number]]
        longest = max((limits[number] for number in drafting), default=0)
        fused = _FUSED if drafting and self.plans_trees else ()
        seen = self._of(drafting[0]) if len(drafting) == 1 else self.overall
        for way in fused:
            if way.num_open > self.most_open or way.block_length >= 2 * longest:
                continue
            outlook_of = {limit: _outlook(seen, way.within(limit)) for limit in set(limits.values()) if limit}
            outlooks = [outlook_of[limits[number]] for number in drafting]
            rate = self._fused_rate(len(limits) - len(drafting), outlooks)
            if rate > best.tokens_per_s * (_MARGIN if best is linear else 1):
                own = {number: way.within(limits[number]) for number in drafting}
                best = Choice(dict.fromkeys(limits, STEP) | own, rate)
        return best

    def _choose_linear(self, limits: Mapping[int, int]) -> Choice:
        best = Choice(dict.fromkeys(limits, STEP), self._rate(len(limits)))
        expected = {
            number: self._of(number).acceptance(0).expected_tokens(limit) for number, limit in limits.items()
        }
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
                rate = self._rate(len(limits) - len(drafting), len(drafting), decided, tokens)
                if rate > best.tokens_per_s:
                    chosen = dict.fromkeys(limits, STEP) | {other: Way(lengths[other]) for other in drafting}
                    best = Choice(chosen, rate)
        return best

    def observe_forward(
        self,
        tokens: int,
        seconds: float,
        *,
        num_canvases: int = 0,
        num_trees: int = 0,
        other_tokens: int,
        other_decided: int,
    ) -> None:
        """Take a forward's measurement, and what requests that are not planned had of it.

        `num_canvases`: how many requests drafted or denoised in it, `num_trees`: how many had a tree or pre-drafts.
        """
        if not num_trees and not num_canvases:
            self.curve.observe(tokens, seconds)
        elif self.curve.is_known:
            beside = seconds - self.curve.seconds(tokens)
            if num_trees:
                self.tree.observe((beside - num_canvases * self.canvas.cost) / num_trees)
            else:
                self.canvas.observe(beside / num_canvases)
        self.other_tokens = _SMOOTHING * self.other_tokens + (1 - _SMOOTHING) * other_tokens
        self.other_rate = _SMOOTHING * self.other_rate + (1 - _SMOOTHING) * other_decided

    def observe_verdict(self, number: int, verdict: Verdict) -> None:
        """Take the verdict on a request's draft."""
        self._last = None
        for seen in (self.overall, self._of(number)):
            seen.observe(verdict)

    def forget(self, number: int) -> None:
        """Drop what is known of a request that is gone."""
        self._own.pop(number, None)
        self._num_steps.pop(number, None)

    def _fused_rate(self, steppers: int, outlooks: Sequence[_Outlook]) -> float:
        """Return tokens per second with drafters that draft few tokens and verify many.

        The first one's two kinds of forwards are told apart; the others are out of step with it, and count as their
        mean.
        """
        first, tokens = outlooks[0], sum(outlook.tokens for outlook in outlooks[1:])
        tokens += self.other_tokens + steppers
        draft_s = self.curve.seconds(tokens + first.draft_tokens)
        verify_s = self.curve.seconds(tokens + first.verify_tokens)
        seconds = first.drafting * draft_s + (1 - first.drafting) * verify_s
        seconds += len(outlooks) * self.tree.cost
        seconds += sum(outlook.drafting for outlook in outlooks) * self.canvas.cost
        return (self.other_rate + steppers + sum(outlook.decided for outlook in outlooks)) / seconds

    def _rate(self, steppers: int, drafters: int = 0, decided: float = 0.0, tokens: float = 0.0) -> float:
        """Return tokens per second where drafters run `tokens` in a forward for `decided`; a step is one of each.

        They draft in every other forward.
        """
        seconds = self.curve.seconds(self.other_tokens + steppers + tokens) + drafters / 2 * self.canvas.cost
        return (self.other_rate + steppers + decided) / seconds

    def _probe(self, number: int, choice: Choice, limit: int) -> Way:
        """Return the chosen way, or a probe after many steps, if drafts that all hold would pay."""
        way = choice.ways[number]
        self._num_steps[number] = 0 if way.block_length else self._num_steps.get(number, 0) + 1
        if self._num_steps[number] < _PROBE_INTERVAL or not limit:
            return way
        self._num_steps[number] = 0
        probe = min(limit, _PROBE_LENGTH)
        num_others = len(choice.ways) - 1
        drafting = self._rate(num_others, 1, (probe + 1) / 2, _tokens_per_forward(probe))
        would_pay = drafting > self._rate(num_others + 1)
        return Way(probe) if would_pay else STEP

    def _of(self, number: int) -> Experience:
        return self._own.setdefault(number, Experience(self.overall))


def _tokens_per_forward(length: int) -> float:
    """Return what a drafter adds to a forward: a cycle is two, of the last token and the drafts, and of the drafts.

    Requests are out of step with each other, so both forwards cost like their mean.
    """
    return (1 + 2 * length) / 2


def _outlook(seen: Experience, way: Way) -> _Outlook:
    """Return what experience lets expect of a way with drafts.

    A cycle is a draft and its verification; where a pre-draft stands ready, the next one is a verification alone.
    Its own first place is the verifier's token, so it drafts one place less.
    """
    length = way.block_length
    decided = seen.acceptance(way.branching).expected_tokens(length)[length]
    if not way.num_predrafts:
        return _Outlook(decided / 2, 1 / 2, 1 + length, way.num_candidates)
    hit = seen.hit_rate(way.num_predrafts)
    ahead = seen.acceptance(way.branching, ahead=True).expected_tokens(length - 1)[length - 1]
    mean = ((1 - hit) * decided + hit * ahead) / (2 - hit)
    return _Outlook(mean, (1 - hit) / (2 - hit), 1 + length, way.num_open + hit)

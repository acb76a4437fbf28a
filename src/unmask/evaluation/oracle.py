"""The fewest forwards in which a canvas can reach the tokens that one-at-a-time decoding gives it.

A forward sees a canvas and proposes the most probable token at every open place. One-at-a-time (serial) decoding
commits the most confident proposal of each forward; what it ends with is the *target*. A proposal *matches* where it is
the target's token. An oracle knows the target and may commit, after each forward, any of the matching proposals. It
commits no others, so a canvas that it meets holds tokens of the target and masks, and is run once, however often met.

The speed of light of Nemotron-Labs-Diffusion (arXiv 2607.05722, section 4): greedy acceptance, and compaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from unmask.diffusion.denoising import DenoiserFunction

State = tuple[int, ...]
"""The tokens of a canvas, the mask token where it is open."""


@dataclass(frozen=True)
class Proposals:
    """What a forward proposes: the most probable `tokens` (L), and the open `places`, the most confident first."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class OracleCounts:
    """Forwards until one canvas holds its target.

    `serial`: one token at a time. `greedy`: commits all that matches; None where that leaves the way to the target.
    `compaction`: commits the longest run of matches, most confident first, from where greedy acceptance still arrives,
    and the first of them where none is. `fewest`: over all sequences of such runs; `is_proven` unless the
    search ran out of canvases, and then the least found. `num_canvases`: forwards that all of this took.
    """

    serial: int
    greedy: int | None
    compaction: int
    fewest: int
    is_proven: bool
    num_canvases: int


class _OutOfCanvases(Exception):
    """The search may look at no more canvases."""


@dataclass
class CanvasOracle:
    """The oracles of one canvas.

    `denoise` is called with one canvas (1, L) at a time, and told the share of it that is open as the time. It must
    depend on nothing else. `stop_token_ids`: the first of them in the target ends the text; what lies behind it need
    not be reached. `max_canvases`: most that the search for the fewest forwards may look at, others not counted.
    """

    denoise: DenoiserFunction
    mask_token_id: int
    length: int
    stop_token_ids: Sequence[int] = ()
    max_canvases: int = 1000
    _looks: dict[State, Proposals] = field(default_factory=dict)
    _hopeless: dict[State, int] = field(default_factory=dict)

    @property
    def blank(self) -> State:
        """The canvas before the first forward."""
        return (self.mask_token_id,) * self.length

    @cached_property
    def path(self) -> tuple[State, ...]:
        """The canvases of serial decoding, from the blank one to the target."""
        states = [self.blank]
        while not self._ends_text(states[-1]):
            proposals = self.look(states[-1])
            states.append(_with(states[-1], proposals.tokens, proposals.places[:1]))
        return tuple(states)

    @property
    def target(self) -> State:
        """What serial decoding ends with; places that it never came to hold the mask token."""
        return self.path[-1]

    @cached_property
    def num_wanted(self) -> int:
        """How many places must be reached: all, or those up to the token that ends the text."""
        stops = [place for place, token in enumerate(self.target) if token in self.stop_token_ids]
        return min(stops, default=self.length - 1) + 1

    def look(self, state: State) -> Proposals:
        """Run a canvas, unless it was run before."""
        if state not in self._looks:
            tokens = torch.tensor([state])
            is_open = tokens[0] == self.mask_token_id
            share = is_open.double().mean().view(1, 1)
            highest, likeliest = self.denoise(tokens, share)[0].softmax(-1).max(-1)
            order = highest.masked_fill(~is_open, -1.0).argsort(descending=True, stable=True)
            places = tuple(order[: int(is_open.sum())].tolist())
            self._looks[state] = Proposals(tuple(likeliest.tolist()), places)
        return self._looks[state]

    def matches(self, state: State) -> tuple[int, ...]:
        """Return the places where a forward proposes the target's token, the most confident first."""
        proposals = self.look(state)
        return tuple(place for place in proposals.places if proposals.tokens[place] == self.target[place])

    def is_reached(self, state: State) -> bool:
        """Tell whether all wanted places hold the target's tokens."""
        return state[: self.num_wanted] == self.target[: self.num_wanted]

    def greedy(self, state: State) -> int | None:
        """Count the forwards to the target if all matches are committed; None where a forward comes to have none."""
        count = 0
        while not self.is_reached(state):
            places = self.matches(state)
            if not places:
                return None
            state, count = _with(state, self.target, places), count + 1
        return count

    def compaction(self) -> int:
        """Count the forwards of one recursion: the longest run of matches from where `greedy` arrives.

        Every such run is tried, from the longest down. From a canvas with no such run the most confident match is
        committed: up to there that was serial decoding, which arrives.
        """
        state, count = self.blank, 0
        while not self.is_reached(state):
            places = self.matches(state)
            runs = (_with(state, self.target, places[:size]) for size in range(len(places), 0, -1))
            first = _with(state, self.target, places[:1])
            state = next((run for run in runs if self.greedy(run) is not None), first)
            count += 1
        return count

    def counts(self) -> OracleCounts:
        """Return what all oracles need."""
        serial, greedy, compaction = len(self.path) - 1, self.greedy(self.blank), self.compaction()
        fewest, is_proven = self._fewest(min(compaction, serial))
        return OracleCounts(serial, greedy, compaction, fewest, is_proven, len(self._looks))

    def _fewest(self, known: int) -> tuple[int, bool]:
        """Return the fewest forwards over all sequences of runs, and whether that is proven; `known` are enough.

        Iterative deepening: fewer forwards are ruled out one by one, from a single one up.
        """
        most = len(self._looks) + self.max_canvases
        for count in range(1, known):
            try:
                if self._is_reachable(self.blank, count, most):
                    return count, True
            except _OutOfCanvases:
                return known, False
        return known, True

    def _is_reachable(self, state: State, count: int, most: int) -> bool:
        """Tell whether `count` forwards, at least one, lead from a canvas to the target."""
        if self._hopeless.get(state, 0) >= count:
            return False
        if state not in self._looks and len(self._looks) >= most:
            raise _OutOfCanvases
        places = self.matches(state)
        for size in range(len(places), 0, -1):
            after = _with(state, self.target, places[:size])
            if self.is_reached(after) or (count > 1 and self._is_reachable(after, count - 1, most)):
                return True
        self._hopeless[state] = count
        return False

    def _ends_text(self, state: State) -> bool:
        """Tell whether a canvas is full, or decided up to a token that ends the text."""
        for token in state:
            if token == self.mask_token_id:
                return False
            if token in self.stop_token_ids:
                return True
        return True


def _with(state: State, tokens: Sequence[int], places: Sequence[int]) -> State:
    """Commit the tokens at some places."""
    return tuple(tokens[place] if place in places else token for place, token in enumerate(state))

"""How far drafts are accepted, and how often a pre-draft stands where a verification stops."""

from dataclasses import dataclass
from itertools import accumulate

_MEMORY = 200.0  # drafts, after which what was seen before has faded to 1/e
_PRIOR_DRAFTS = 4.0
_PRIOR_ACCEPTANCE = 0.8
_SECOND_CHOICE = (
    0.5  # how often a place holds by twice the candidates where it would not by one, before any was seen
)
_PRIOR_HIT = 0.5  # the same of one pre-draft, and of each that is added where those before it miss


class Acceptance:
    """How often a drafted token is accepted given that all before it were, by its place in the draft.

    Counts fade, so that what is being written now counts most. Without data a place is judged like the place before
    it, and the first like `prior`: another `Acceptance`, that of all requests, or a constant. `lift`: of what the prior
    expects to be rejected, this share is expected to be accepted.
    """

    def __init__(self, prior: "Acceptance | float" = _PRIOR_ACCEPTANCE, *, lift: float = 0.0) -> None:
        self._prior, self._lift = prior, lift
        self._first = _PRIOR_ACCEPTANCE if isinstance(prior, Acceptance) else prior
        self._tried: list[float] = []
        self._accepted: list[float] = []
        self._num_observed = 0
        self._rates: tuple[int, list[float]] = (-1, [])  # as of a version

    @property
    def version(self) -> int:
        """A number that changes whenever something is observed, here or by the prior."""
        return self._num_observed + (self._prior.version if isinstance(self._prior, Acceptance) else 0)

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Take one verification: places ``[0, num_accepted)`` were accepted, the next one, if drafted, was not."""
        self._num_observed += 1
        fade = 1 - 1 / _MEMORY
        missing = num_drafted - len(self._tried)
        self._tried += [0.0] * missing
        self._accepted += [0.0] * missing
        for place in range(min(num_accepted + 1, num_drafted)):
            self._tried[place] = self._tried[place] * fade + 1
            self._accepted[place] = self._accepted[place] * fade + (place < num_accepted)

    def rates(self, length: int) -> list[float]:
        """Return the chance of each of the first `length` places."""
        version, known = self._rates
        if version != self.version or len(known) < length:
            known = self._fresh_rates(length)
            self._rates = self.version, known
        return known[:length]

    def _fresh_rates(self, length: int) -> list[float]:
        prior = self._prior
        guesses = prior.rates(length) if isinstance(prior, Acceptance) else None
        rates: list[float] = []
        for place in range(length):
            if guesses is not None:
                guess = guesses[place] + self._lift * (1 - guesses[place])
            else:
                guess = rates[-1] if rates else self._first
            tried = self._tried[place] if place < len(self._tried) else 0.0
            accepted = self._accepted[place] if place < len(self._accepted) else 0.0
            rates.append((accepted + _PRIOR_DRAFTS * guess) / (tried + _PRIOR_DRAFTS))
        return rates

    def expected_tokens(self, length: int) -> list[float]:
        """Return what a cycle of 0, 1, ..., `length` drafts is expected to decide, the verifier's token included."""
        reached = accumulate(self.rates(length), lambda chance, rate: chance * rate, initial=1.0)
        return list(accumulate(reached))


@dataclass(frozen=True)
class Verdict:
    """What a verification made of a draft of so many places, of a kind as in `Experience`.

    `hit`: one of `num_predrafts` stood where it stopped.
    """

    num_drafted: int
    num_accepted: int
    branching: int = 0
    ahead: bool = False
    num_predrafts: int = 0
    hit: bool = False


class Experience:
    """What was seen of the drafts of one request, which builds on that of all, its `prior`; or of all.

    Drafts of a kind are those with the same `branching` (candidates over places, 0 for one at each) that came out of a
    forward of their own, or out of a pre-draft (`ahead`), which does not see the token before them.
    """

    def __init__(self, prior: "Experience | None" = None) -> None:
        self._prior = prior
        self._acceptances: dict[tuple[int, bool], Acceptance] = {}
        self._hits: dict[int, Acceptance] = {}

    def acceptance(self, branching: int, *, ahead: bool = False) -> Acceptance:
        """Return that of a kind. Before any was seen it is that of the kind it is closest to, and better by a guess."""
        key = branching, ahead
        if key not in self._acceptances:
            if self._prior is not None:
                made = Acceptance(self._prior.acceptance(branching, ahead=ahead))
            elif ahead:
                made = Acceptance(self.acceptance(branching))
            elif branching:
                fewer = branching // 2 if branching > 2 else 0
                made = Acceptance(self.acceptance(fewer), lift=_SECOND_CHOICE / max(1, fewer))
            else:
                made = Acceptance()
            self._acceptances[key] = made
        return self._acceptances[key]

    def hit_rate(self, num_predrafts: int) -> float:
        """Return the chance that one of so many pre-drafts stands where the verification beside it stops."""
        return self._hits_of(num_predrafts).rates(1)[0]

    def observe(self, verdict: Verdict) -> None:
        """Take what a verification made of a draft."""
        kind = self.acceptance(verdict.branching, ahead=verdict.ahead)
        kind.observe(verdict.num_drafted, verdict.num_accepted)
        if verdict.num_predrafts:
            self._hits_of(verdict.num_predrafts).observe(1, int(verdict.hit))

    def _hits_of(self, num_predrafts: int) -> Acceptance:
        if num_predrafts not in self._hits:
            prior = self._prior
            guess = 1 - (1 - _PRIOR_HIT) ** num_predrafts
            self._hits[num_predrafts] = Acceptance(guess if prior is None else prior._hits_of(num_predrafts))
        return self._hits[num_predrafts]

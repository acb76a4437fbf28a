"""How far drafts are accepted."""

from itertools import accumulate

_MEMORY = 200.0  # drafts, after which what was seen before has faded to 1/e
_PRIOR_DRAFTS = 4.0
_PRIOR_ACCEPTANCE = 0.8


class Acceptance:
    """How often a drafted token is accepted given that all before it were, by its place in the draft.

    Counts fade, so that what is being written now counts most. Without data a place is judged like the place before
    it, and the first like `prior`: another `Acceptance`, that of all requests, or a constant.
    """

    def __init__(self, prior: "Acceptance | None" = None) -> None:
        self._prior = prior
        self._tried: list[float] = []
        self._accepted: list[float] = []

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Take one verification: places ``[0, num_accepted)`` were accepted, the next one, if drafted, was not."""
        fade = 1 - 1 / _MEMORY
        missing = num_drafted - len(self._tried)
        self._tried += [0.0] * missing
        self._accepted += [0.0] * missing
        for place in range(min(num_accepted + 1, num_drafted)):
            self._tried[place] = self._tried[place] * fade + 1
            self._accepted[place] = self._accepted[place] * fade + (place < num_accepted)

    def rates(self, length: int) -> list[float]:
        """Return the chance of each of the first `length` places."""
        priors = self._prior.rates(length) if self._prior is not None else None
        rates: list[float] = []
        for place in range(length):
            before = rates[-1] if rates else _PRIOR_ACCEPTANCE
            prior = before if priors is None else priors[place]
            tried = self._tried[place] if place < len(self._tried) else 0.0
            accepted = self._accepted[place] if place < len(self._accepted) else 0.0
            rates.append((accepted + _PRIOR_DRAFTS * prior) / (tried + _PRIOR_DRAFTS))
        return rates

    def expected_tokens(self, length: int) -> list[float]:
        """Return what a cycle of 0, 1, ..., `length` drafts is expected to decide, the verifier's token included."""
        reached = accumulate(self.rates(length), lambda chance, rate: chance * rate, initial=1.0)
        return list(accumulate(reached))

"""Who runs in the next forward, and with which tokens."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from unmask.engine.pages import PagePool
from unmask.engine.request import Request
from unmask.errors import UsageError


@dataclass(frozen=True)
class Share:
    """One request's part of a forward: decided tokens ``[begin, end)`` run causally, then what is open, if `settles`.

    A share that does not settle is a chunk: it stores, and asks for no law.
    """

    request: Request
    begin: int
    end: int
    settles: bool

    @property
    def num_tokens(self) -> int:
        return self.end - self.begin + (self.request.num_open if self.settles else 0)

    @property
    def stored_end(self) -> int:
        """The position after the last one that this forward writes keys and values for."""
        is_verification = self.settles and self.request.kind == "verify"
        return self.end + (len(self.request.drafts) if is_verification else 0)

    @property
    def stores(self) -> bool:
        """Whether the decided tokens' keys and values are written; a token run for its state alone has them already."""
        return self.begin >= self.request.num_stored


@dataclass(frozen=True)
class Batch:
    """The shares of one forward, oldest request first, and the requests that lost their pages for it."""

    shares: tuple[Share, ...]
    preempted: tuple[Request, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(share.num_tokens for share in self.shares)


class Scheduler:
    """First come, first served: each step runs what every request has decided but not stored, with what it has open.

    `token_budget`: most tokens of a forward; a longer prompt runs in chunks. `max_requests`: most that run at once.
    Where pages are short the newest running request gives its own back; it keeps what it decided, and waits.
    """

    def __init__(self, pool: PagePool, *, token_budget: int, max_requests: int) -> None:
        if token_budget < 1 or max_requests < 1:
            raise UsageError(
                f"token_budget={token_budget}, max_requests={max_requests}: both must be 1 or more"
            )
        self.pool, self.token_budget, self.max_requests = pool, token_budget, max_requests
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn; raises UsageError for one that could never run alone."""
        least = 1 + max(request.block_length, request.most_beside)
        if least > self.token_budget:
            what = "its tree and its pre-drafts need" if request.most_beside else "needs"
            raise UsageError(
                f"block_length={request.block_length} {what} forwards of {least} tokens; "
                f"the engine's token_budget is {self.token_budget}",
                "shorten the block or raise the budget",
            )
        pages = self.pool.pages_for(request.num_decided + request.written.room - 1)
        if pages > self.pool.num_pages:
            raise UsageError(
                f"prompt and answer of {request.num_decided + request.written.room} tokens need {pages} pages; "
                f"the engine has {self.pool.num_pages}",
                "shorten them or give the engine more pages",
            )
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take out a request, finished or not, and release its pages; ValueError when it is not here."""
        (self.running if request in self.running else self.waiting).remove(request)
        request.forget_stored()

    def schedule(self) -> Batch:
        """Return the shares of the next forward, their pages reserved; at least one while there is work."""
        shares: list[Share] = []
        preempted: list[Request] = []
        budget = self.token_budget
        place = 0
        while place < len(self.running) and budget:
            share = _share(self.running[place], budget)
            place += 1
            if share is None:
                continue
            while share.request.table.num_missing(share.stored_end) > self.pool.num_available:
                victim = self.running.pop()
                victim.forget_stored()
                self.waiting.appendleft(victim)
                preempted.append(victim)
                if victim is share.request:
                    break
            else:
                shares.append(_reserved(share))
                budget -= share.num_tokens
        if not preempted:
            shares += self._admit(budget)
        return Batch(tuple(shares), tuple(preempted))

    def check(self) -> None:
        """Prove that pages add up over all requests; raises AssertionError."""
        self.pool.check(request.table for request in (*self.running, *self.waiting))

    def _admit(self, budget: int) -> Iterator[Share]:
        """Start waiting requests in order of arrival while budget, places and pages for all they have decided last."""
        while self.waiting and budget and len(self.running) < self.max_requests:
            request = self.waiting[0]
            # The last decided token always runs, for its law.
            request.num_stored = request.table.adopt(request.decided(0, request.base - 1))
            share = _share(request, budget)
            wanted = request.base + len(request.drafts)
            if share is None or request.table.num_missing(wanted) > self.pool.num_available:
                request.forget_stored()
                return
            self.running.append(self.waiting.popleft())
            yield _reserved(share)
            budget -= share.num_tokens


def _share(request: Request, budget: int) -> Share | None:
    """Return what of a request fits in a budget of tokens, or `None` if nothing does."""
    begin, end = request.first, request.base
    if end - begin + request.num_open <= budget:
        return Share(request, begin, end, settles=True)
    chunk = min(budget, end - begin - 1)
    return Share(request, begin, begin + chunk, settles=False) if chunk > 0 else None


def _reserved(share: Share) -> Share:
    share.request.table.reserve(share.stored_end)
    return share

"""The scheduler: budgets, chunks, admission, preemption; and a state machine that proves that pages add up."""

import random
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from plain_requests import Words, plain_request

from unmask.engine.pages import PagePool, PageTable
from unmask.engine.request import Request
from unmask.engine.scheduler import Batch, Scheduler, Share
from unmask.errors import UsageError


def scheduler_of(
    *, num_pages: int = 64, page_size: int = 2, token_budget: int = 16, max_requests: int = 8
) -> Scheduler:
    pool = PagePool(num_pages, page_size)
    return Scheduler(pool, token_budget=token_budget, max_requests=max_requests)


def add(scheduler: Scheduler, number: int, **changes: Any) -> Request:
    request = plain_request(scheduler.pool, number=number, **changes)
    scheduler.add(request)
    return request


def step(scheduler: Scheduler, token: int = 9) -> Batch:
    """Run a step in which every request gets what it hopes for."""
    batch = scheduler.schedule()
    for share in batch.shares:
        settle(share, [token] * 99, 99)
        if share.request.is_finished:
            scheduler.remove(share.request)
    scheduler.check()
    return batch


def settle(share: Share, tokens: list[int], count: int) -> None:
    """Give a share its outcome: the first of `tokens`, or up to `count` of them."""
    request = share.request
    if not share.settles:
        request.store(share.stored_end)
        return
    kind, length = request.kind, request.num_open
    if kind != "verify":
        request.store(share.stored_end)
    match kind:
        case "step":
            request.take_next(tokens[0])
        case "draft":
            request.propose(tokens[:length])
        case "verify":
            request.accept(min(count, length), tokens[0])
        case "denoise":
            is_open = [i for i in range(length) if not request.canvas or request.canvas[i] is None]
            request.commit(dict(zip(is_open[: max(1, count)], tokens, strict=False)))


def shape(batch: Batch) -> list[tuple[int, int, int, bool]]:
    return [(share.request.number, share.begin, share.end, share.settles) for share in batch.shares]


def test_long_prompts_run_in_chunks_beside_steps() -> None:
    scheduler = scheduler_of(token_budget=6)
    add(scheduler, 0, prompt=(1, 2), limit=9)
    add(scheduler, 1, prompt=(*range(10, 25),), limit=9)
    assert shape(step(scheduler)) == [(0, 0, 2, True), (1, 0, 4, False)]
    assert shape(step(scheduler)) == [(0, 2, 3, True), (1, 4, 9, False)]
    assert shape(step(scheduler)) == [(0, 3, 4, True), (1, 9, 14, False)]
    assert shape(step(scheduler)) == [(0, 4, 5, True), (1, 14, 15, True)]


def test_a_chunk_leaves_the_last_token_to_the_forward_that_needs_its_law() -> None:
    scheduler = scheduler_of(token_budget=5)
    add(scheduler, 0, prompt=(1, 2, 3, 4), mode="diffusion", block_length=4, predicts_next=False)
    assert shape(step(scheduler)) == [(0, 0, 3, False)]
    assert shape(step(scheduler)) == [(0, 3, 4, True)]


def test_one_batch_mixes_all_modes() -> None:
    scheduler = scheduler_of()
    for number, mode in enumerate(("ar", "diffusion", "speculative")):
        add(scheduler, number, mode=mode)
    step(scheduler)
    kinds = [share.request.kind for share in scheduler.schedule().shares]
    assert kinds == ["step", "denoise", "draft"]


def test_later_requests_wait_for_budget_and_places() -> None:
    scheduler = scheduler_of(token_budget=8, max_requests=2)
    for number in range(4):
        add(scheduler, number, prompt=(1, 2, 3), limit=2)
    assert shape(step(scheduler)) == [(0, 0, 3, True), (1, 0, 3, True)]
    assert shape(step(scheduler)) == [(0, 3, 4, True), (1, 3, 4, True)]
    assert [share.request.number for share in step(scheduler).shares] == [2, 3]


def test_a_known_prompt_is_not_computed_again_but_for_its_last_token() -> None:
    scheduler = scheduler_of()
    add(scheduler, 0, prompt=(1, 2, 3, 4), limit=1)
    step(scheduler)
    add(scheduler, 1, prompt=(1, 2, 3, 4), limit=1)
    add(scheduler, 2, prompt=(1, 2, 3, 4, 5), limit=1)
    assert shape(step(scheduler)) == [(1, 2, 4, True), (2, 4, 5, True)]


def test_a_token_run_for_its_state_alone_is_not_stored_again() -> None:
    scheduler = scheduler_of(page_size=4)
    request = add(scheduler, 0, mode="diffusion")
    step(scheduler)
    (share,) = scheduler.schedule().shares
    assert (share.begin, share.end, share.stores) == (3, 4, True)
    request.store(4)
    request.commit({2: 9})
    (share,) = scheduler.schedule().shares
    assert (share.begin, share.end, share.stores) == (3, 4, False)
    assert request.table.num_published == 1  # the page that holds position 3


def test_the_newest_gives_its_pages_and_comes_back_first() -> None:
    scheduler = scheduler_of(num_pages=6, page_size=1)
    old = add(scheduler, 0, prompt=(1, 2), limit=4)
    new = add(scheduler, 1, prompt=(3, 4), limit=4)
    add(scheduler, 2, prompt=(5, 6, 7), limit=2)
    step(scheduler)
    assert scheduler.running == [old, new]  # two pages are left, and the third request begins with three
    assert list(map(len, (old.table.pages, new.table.pages))) == [2, 2]
    step(scheduler)
    batch = step(scheduler)
    assert batch.preempted == (new,)
    assert [share.request for share in batch.shares] == [old]
    assert (new.num_stored, new.written.token_ids, scheduler.waiting[0]) == (0, [9, 9], new)
    while not old.is_finished:
        step(scheduler)
    # What it gave back was kept as long as there was room: it need not be computed twice.
    assert step(scheduler).shares[0].begin > 0


def test_what_can_never_run_is_refused() -> None:
    scheduler = scheduler_of(num_pages=4, page_size=2, token_budget=5)
    with pytest.raises(UsageError, match="block_length=5 needs forwards of 6 tokens"):
        add(scheduler, 0, mode="speculative", block_length=5)
    with pytest.raises(UsageError, match="of 10 tokens need 5 pages; the engine has 4"):
        add(scheduler, 0, prompt=(1,) * 4, limit=6)
    add(scheduler, 0, prompt=(1,) * 4, limit=5)
    with pytest.raises(UsageError, match="must be 1 or more"):
        scheduler_of(token_budget=0)


def test_removal_takes_from_either_place_and_only_once() -> None:
    scheduler = scheduler_of(max_requests=1)
    running, waiting = add(scheduler, 0), add(scheduler, 1)
    step(scheduler)
    for request in (running, waiting):
        scheduler.remove(request)
        with pytest.raises(ValueError):
            scheduler.remove(request)
    assert not scheduler.has_work
    assert scheduler.pool.num_available == scheduler.pool.num_pages


class Engine(RuleBasedStateMachine):
    """Random arrivals, aborts and outcomes over a tiny pool.

    `memory` is what the pages hold: for each slot, the tokens that the keys and values there were computed from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[tuple[int, int], tuple[int, ...]] = {}
        self.alive: dict[int, Request] = {}
        self.answered: list[int] = []
        self.aborted: list[int] = []
        self.prompts: dict[int, tuple[int, ...]] = {}

    @initialize(
        num_pages=st.integers(8, 14),
        page_size=st.integers(1, 3),
        token_budget=st.integers(5, 14),
        max_requests=st.integers(2, 5),
    )
    def build(self, **sizes: int) -> None:
        self.scheduler = scheduler_of(**sizes)

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=8),
        limit=st.integers(1, 16),
        mode=st.sampled_from(["ar", "diffusion", "speculative"]),
        block_length=st.integers(1, 4),
        looks_back=st.booleans(),
        predicts_next=st.booleans(),
    )
    def arrive(self, prompt: list[int], limit: int, mode: str, predicts_next: bool, **rest: Any) -> None:
        number = len(self.prompts)
        causal = predicts_next or mode != "diffusion"
        request = plain_request(
            self.scheduler.pool,
            number=number,
            prompt=tuple(prompt),
            limit=limit,
            stop=0,
            mode=mode,
            predicts_next=causal,
            **rest,
        )
        try:
            self.scheduler.add(request)
        except UsageError:
            return
        self.alive[number] = request
        self.prompts[number] = tuple(prompt)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.alive)))
        self.scheduler.remove(self.alive.pop(number))
        self.aborted.append(number)

    @precondition(lambda self: self.alive)
    @rule(seed=st.integers(0, 2**16), count=st.integers(1, 8), eager=st.booleans())
    def forwards(self, seed: int, count: int, eager: bool) -> None:
        """Run some forwards; an eager model writes no stop token."""
        generator = random.Random(seed)
        for _ in range(count):
            if self.alive:
                self.forward(generator, stop=not eager)

    def forward(self, generator: random.Random, *, stop: bool) -> None:
        batch = self.scheduler.schedule()
        assert batch.shares, "there is work, and nothing runs"
        assert batch.num_tokens <= self.scheduler.token_budget
        assert len({share.request.number for share in batch.shares}) == len(batch.shares)
        for share in batch.shares:
            self.run(share)
        for share in batch.shares:
            tokens = generator.choices([0, 1, 2], [int(stop), 20, 20], k=20)
            settle(share, tokens, generator.randint(0, 4))
            if share.request.is_finished:
                self.finish(share.request)

    def run(self, share: Share) -> None:
        """Read all that the share sees and write all that it stores."""
        request, size = share.request, self.scheduler.pool.page_size
        drafts = request.drafts if share.settles else []
        tokens = (*request.decided(0, share.end), *drafts)
        table = request.table.pages
        for position in range(share.begin):
            content = self.memory.get((table[position // size], position % size))
            assert content == tokens[: position + 1], f"position {position} holds {content}"
        for position in range(share.begin if share.stores else share.end, share.stored_end):
            page = table[position // size]
            assert self.scheduler.pool.is_writable(page), f"page {page} is shared or published"
            self.memory[page, position % size] = tokens[: position + 1]

    def finish(self, request: Request) -> None:
        self.scheduler.remove(request)
        assert request.number not in self.answered
        assert isinstance(request.written, Words)
        assert request.written.decided_at == sorted(request.written.decided_at) or request.mode == "diffusion"
        self.answered.append(request.number)
        del self.alive[request.number]

    @invariant()
    def pages_add_up(self) -> None:
        if self.prompts:
            self.scheduler.check()

    @invariant()
    def nobody_is_lost(self) -> None:
        if self.prompts:
            here = [request.number for request in (*self.scheduler.running, *self.scheduler.waiting)]
            assert here == sorted(self.alive), "in order of arrival, each once"
            assert sorted([*here, *self.answered, *self.aborted]) == list(range(len(self.prompts)))

    def teardown(self) -> None:
        """All that are left come to their ends in a bounded number of forwards, and give everything back."""
        if not self.prompts:
            return
        generator = random.Random(0)
        for _ in range(12 * sum(len(r.prompt) + 3 * r.written.room + 2 for r in self.alive.values())):
            if self.alive:
                self.forward(generator, stop=False)
        assert not self.alive, "no progress"
        pool = self.scheduler.pool
        assert pool.num_available == pool.num_pages
        pool.check([])


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=80, stateful_step_count=25)


def _store_always(share: Share) -> bool:
    return True


def _keep_pages(request: Request) -> None:
    request.table.pool.release(request.table.pages)
    request.num_stored = 0


def _store_too_many(request: Request, end: int) -> None:
    request.num_stored = min(end + 1, request.num_decided)


def _leak(table: PageTable) -> None:
    table.pool.release(table.pages[:-1])
    table.pages, table.num_published = [], 0


def _ignore_predecessor(pool: PagePool, previous: int | None, tokens: tuple[int, ...]) -> int | None:
    return next((page for (_, known), page in pool._page_of.items() if known == tokens), None)


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (Share, "stores", property(_store_always)),
        (Request, "forget_stored", _keep_pages),
        (Request, "store", _store_too_many),
        (PageTable, "clear", _leak),
        (PagePool, "find", _ignore_predecessor),
    ],
    ids=["stores again", "keeps released pages", "counts one too many", "leaks a page", "ignores the prefix"],
)
def test_planted_faults_are_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fault: object
) -> None:
    monkeypatch.setattr(owner, name, fault)
    quick = settings(
        max_examples=200, stateful_step_count=20, database=None, phases=[Phase.generate], derandomize=True
    )
    with pytest.raises((AssertionError, ValueError, IndexError)):
        run_state_machine_as_test(Engine, settings=quick)

"""Pages of KV-cache memory: who holds them, which are kept for their content, which go when room is needed.

Positions ``[i * page_size, (i + 1) * page_size)`` of a request live in ``table.pages[i]``. A page full of stored tokens
is published: from then on nobody writes to it, every request that begins with the same tokens may hold it too, and it
keeps its content while nobody does, until room is needed. The pages published under one page and a run of tokens are
found by exactly these, page by page from the beginning, so a hit has been compared token by token.
"""

from collections.abc import Iterable, Sequence

Key = tuple[int | None, tuple[int, ...]]
"""What a published page holds: the tokens in it, after the page before it (`None`: it is the first)."""


class PagePool:
    """A fixed number of pages with a count of holders each.

    Every page is free, or held, or idle: published and held by nobody. A published page's predecessor is published
    too: whoever holds a page holds all before it, and idle pages are evicted least recently held first, the later
    ones of a table before the earlier.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"a pool of {num_pages} pages of {page_size} positions holds nothing")
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages))[::-1]
        self._idle: dict[int, None] = {}  # in the order in which they became idle
        self._num_holders = [0] * num_pages
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}

    @property
    def num_available(self) -> int:
        """How many pages `take` can give."""
        return len(self._free) + len(self._idle)

    def pages_for(self, num_positions: int) -> int:
        """Return how many pages hold so many positions."""
        return -(-num_positions // self.page_size)

    def take(self, count: int) -> list[int]:
        """Return pages to write to, held once, evicting idle ones where no page is free; ValueError when too few."""
        if count > self.num_available:
            raise ValueError(f"{count} pages were asked for, and {self.num_available} are available")
        while len(self._free) < count:
            self._evict(next(iter(self._idle)))
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._num_holders[page] = 1
        return taken

    def hold(self, page: int) -> None:
        """Add a holder to a published page."""
        if page not in self._key_of:
            raise ValueError(f"page {page} is not published, so it cannot be shared")
        self._idle.pop(page, None)
        self._num_holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Take one holder from each of a table's pages, which are given in order."""
        for page in reversed(pages):
            if not self._num_holders[page]:
                raise ValueError(f"page {page} is released, and nobody holds it")
            self._num_holders[page] -= 1
            if not self._num_holders[page]:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def find(self, previous: int | None, tokens: tuple[int, ...]) -> int | None:
        """Return the published page of these tokens after the page `previous`, if there is one."""
        return self._page_of.get((previous, tokens))

    def publish(self, page: int, previous: int | None, tokens: tuple[int, ...]) -> int:
        """Publish a held page, full of these tokens, and return it; or the page that was published for them before.

        In the second case the holder's claim moves to that page.
        """
        if len(tokens) != self.page_size:
            raise ValueError(
                f"page {page} of {self.page_size} positions is not full with {len(tokens)} tokens"
            )
        known = self.find(previous, tokens)
        if known is not None:
            self.hold(known)
            self.release([page])
            return known
        self._page_of[previous, tokens] = page
        self._key_of[page] = previous, tokens
        return page

    def is_writable(self, page: int) -> bool:
        """Say whether the one who holds this page may write to it."""
        return self._num_holders[page] == 1 and page not in self._key_of

    def check(self, tables: Iterable["PageTable"]) -> None:
        """Prove that pages add up, given all tables there are; raises AssertionError."""
        holders = [0] * self.num_pages
        for table in tables:
            previous = None
            for place, page in enumerate(table.pages):
                holders[page] += 1
                published = self._key_of.get(page)
                assert (published is not None) == (place < table.num_published), f"page {page}: {published}"
                assert published is None or published[0] == previous, f"page {page} follows {previous}"
                previous = page
        assert holders == self._num_holders, f"counted {holders}, recorded {self._num_holders}"
        held = {page for page, count in enumerate(holders) if count}
        everything = sorted([*held, *self._free, *self._idle])
        assert everything == list(range(self.num_pages)), f"free, idle and held pages: {everything}"
        assert {page: key for key, page in self._page_of.items()} == self._key_of
        assert set(self._idle) == set(self._key_of) - held
        order = {page: index for index, page in enumerate(self._idle)}
        for page, (previous, _) in self._key_of.items():
            assert previous is None or previous in self._key_of, f"page {page} outlived page {previous}"
            if previous in order:
                assert order[page] < order[previous], f"page {previous} would go before page {page}"

    def _evict(self, page: int) -> None:
        del self._idle[page]
        del self._page_of[self._key_of.pop(page)]
        self._free.append(page)


class PageTable:
    """The pages of one request in order; the first `num_published` of them are published, and only read."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.pages: list[int] = []
        self.num_published = 0

    def adopt(self, tokens: Sequence[int]) -> int:
        """Hold the published pages that an empty table's request begins with; return how many positions they hold."""
        assert not self.pages, "only an empty table adopts pages"
        size = self.pool.page_size
        for begin in range(0, len(tokens) - size + 1, size):
            previous = self.pages[-1] if self.pages else None
            page = self.pool.find(previous, tuple(tokens[begin : begin + size]))
            if page is None:
                break
            self.pool.hold(page)
            self.pages.append(page)
        self.num_published = len(self.pages)
        return len(self.pages) * size

    def num_missing(self, num_positions: int) -> int:
        """Return how many pages must be taken before so many positions fit."""
        return max(0, self.pool.pages_for(num_positions) - len(self.pages))

    def reserve(self, num_positions: int) -> None:
        """Take pages until so many positions fit."""
        self.pages += self.pool.take(self.num_missing(num_positions))

    def publish(self, tokens: Sequence[int]) -> None:
        """Publish the pages that are full, given all tokens that are stored and decided, from the first on."""
        size = self.pool.page_size
        for place in range(self.num_published, len(tokens) // size):
            previous = self.pages[place - 1] if place else None
            run = tuple(tokens[place * size : (place + 1) * size])
            self.pages[place] = self.pool.publish(self.pages[place], previous, run)
            self.num_published += 1

    def clear(self) -> None:
        """Release every page."""
        self.pool.release(self.pages)
        self.pages, self.num_published = [], 0

"""Pages: counts, sharing by content, eviction order, refusals."""

import pytest

from unmask.engine.pages import PagePool, PageTable


def filled(pool: PagePool, tokens: list[int]) -> PageTable:
    """Return a table with these tokens stored and published."""
    table = PageTable(pool)
    table.adopt(tokens)
    table.reserve(len(tokens))
    table.publish(tokens)
    return table


def test_tables_grow_by_whole_pages_and_give_them_back() -> None:
    pool = PagePool(4, 3)
    table = PageTable(pool)
    assert [table.num_missing(n) for n in (0, 1, 3, 4, 12)] == [0, 1, 1, 2, 4]
    table.reserve(4)
    table.reserve(6)
    assert (len(table.pages), pool.num_available) == (2, 2)
    pool.check([table])
    table.clear()
    assert pool.num_available == 4
    pool.check([table])


def test_equal_beginnings_share_full_pages() -> None:
    pool = PagePool(8, 2)
    first = filled(pool, [1, 2, 3, 4, 5])
    second = PageTable(pool)
    assert second.adopt([1, 2, 3, 9, 9]) == 2
    third = PageTable(pool)
    assert third.adopt([1, 2, 3, 4]) == 4
    assert second.pages == first.pages[:1]
    assert third.pages == first.pages[:2]
    assert [pool.is_writable(page) for page in first.pages] == [False, False, True]
    pool.check([first, second, third])


def test_the_same_tokens_after_another_page_are_other_content() -> None:
    pool = PagePool(8, 2)
    filled(pool, [1, 2, 7, 8])
    assert PageTable(pool).adopt([3, 4, 7, 8]) == 0
    assert PageTable(pool).adopt([7, 8]) == 0


def test_equal_hashes_do_not_make_equal_content() -> None:
    """In CPython -1 and -2 have one hash, so their tuples collide in every table."""
    assert hash((None, (-1, -1))) == hash((None, (-2, -2)))
    pool = PagePool(8, 2)
    filled(pool, [-1, -1])
    assert PageTable(pool).adopt([-2, -2]) == 0


def test_content_computed_twice_is_kept_once() -> None:
    pool = PagePool(8, 2)
    tables = [PageTable(pool), PageTable(pool)]
    for table in tables:
        table.reserve(4)
    assert pool.num_available == 4
    for table in tables:
        table.publish([1, 2, 3, 4])
    assert tables[0].pages == tables[1].pages
    assert pool.num_available == 6
    pool.check(tables)


def test_idle_pages_go_least_recently_held_first_and_from_their_ends() -> None:
    pool = PagePool(4, 1)
    filled(pool, [1, 2]).clear()
    filled(pool, [3, 4]).clear()
    again = PageTable(pool)
    assert again.adopt([1, 2]) == 2  # now the older of the two is [3, 4]
    again.clear()
    held = [PageTable(pool)]
    for wanted in ({(1, 2), (3,)}, {(1, 2)}, {(1,)}, set()):
        held[0].reserve(len(held[0].pages) + 1)
        pool.check(held)
        found = {content for content in ((1, 2), (1,), (3, 4), (3,)) if _is_cached(pool, content)}
        assert found == {part for content in wanted for part in (content, content[:1])}
    with pytest.raises(ValueError, match="1 pages were asked for, and 0 are available"):
        held[0].reserve(5)


def _is_cached(pool: PagePool, tokens: tuple[int, ...]) -> bool:
    previous = None
    for token in tokens:
        previous = pool.find(previous, (token,))
        if previous is None:
            return False
    return True


def test_what_is_held_is_never_evicted() -> None:
    pool = PagePool(3, 1)
    table = filled(pool, [1, 2])
    other = PageTable(pool)
    other.reserve(1)
    assert pool.num_available == 0
    table.clear()
    other.reserve(3)
    assert PageTable(pool).adopt([1, 2]) == 0
    pool.check([table, other])


def test_misuse_is_refused() -> None:
    pool = PagePool(2, 2)
    table = PageTable(pool)
    table.reserve(2)
    with pytest.raises(ValueError, match="not published"):
        pool.hold(table.pages[0])
    with pytest.raises(ValueError, match="not full with 1 tokens"):
        pool.publish(table.pages[0], None, (1,))
    pages = list(table.pages)
    table.clear()
    with pytest.raises(ValueError, match="nobody holds it"):
        pool.release(pages)
    with pytest.raises(ValueError, match="holds nothing"):
        PagePool(0, 4)


def test_check_sees_a_leak_and_a_stranger() -> None:
    pool = PagePool(3, 1)
    table = PageTable(pool)
    table.reserve(2)
    pool.check([table])
    with pytest.raises(AssertionError, match="counted"):
        pool.check([])
    table.pages.append(2)
    with pytest.raises(AssertionError, match="counted"):
        pool.check([table])

"""The pages of sequences: none is lost, none is held by two that do not share it, and each holds what was written."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hashing_executor import TokenPages
from hypothesis import given
from hypothesis import strategies as st

from gptoss_export.errors import OutOfPagesError
from gptoss_export.model.config import FULL, SLIDING
from gptoss_export.runtime.executor import PageLayout
from gptoss_export.runtime.page_pool import PagePool
from gptoss_export.runtime.page_tables import PageTables

PAGE, WINDOW, CHUNK = 4, 6, 8


class Sequences:
    """Page tables, the pages behind them, and what each slot's sequence should be."""

    def __init__(self, pages: int, slots: int = 4, full: bool = True, window: int = WINDOW) -> None:
        self.memory = TokenPages(PageLayout(PAGE, pages, full, window, CHUNK))
        self.tables = PageTables(slots, self.memory)
        self.expected: list[list[int]] = [[] for _ in range(slots)]

    def append(self, slot: int, tokens: list[int], told: bool = True) -> None:
        """In chunks, as a prefill appends them. Raises OutOfPagesError; some chunks may be there then."""
        for at in range(0, len(tokens), CHUNK):
            piece, length = tokens[at : at + CHUNK], len(self.expected[slot])
            self.tables.reserve(slot, length, len(piece))
            self.memory.write(slot, length, piece)
            if told:
                self.tables.tell(slot, length, piece)
            self.expected[slot] = self.expected[slot] + piece

    def clear(self, slot: int) -> None:
        self.tables.release(slot, len(self.expected[slot]))
        self.expected[slot] = []

    def truncate(self, slot: int, length: int) -> bool:
        done = self.tables.truncate(slot, len(self.expected[slot]), length)
        if done:
            self.expected[slot] = self.expected[slot][:length]
        return done

    def fork(self, source: int, target: int) -> None:
        self.clear(target)
        self.tables.fork(source, target, len(self.expected[source]))
        self.expected[target] = list(self.expected[source])

    def begin(self, slot: int, prompt: list[int]) -> int:
        """Reuse what is known of a prompt, and append the rest."""
        self.clear(slot)
        known = self.tables.reuse(slot, prompt)
        assert known % PAGE == 0 and known < len(prompt)
        self.expected[slot] = prompt[:known]
        self.check(slot)
        self.append(slot, prompt[known:])
        return known

    def check(self, slot: int) -> None:
        assert self.memory.read(slot, len(self.expected[slot])) == self.expected[slot]

    def check_all(self) -> None:
        """Each page is free or held by as many sequences as its count says; free ones are found by their keys alone."""
        held = Counter(
            page for slot in range(len(self.expected)) for pages in self.tables.pages(slot).values() for page in pages
        )
        del held[0]
        pool = self.tables.pool
        assert all(pool.holders(page) == held[page] for page in range(1, pool.count))
        assert pool.available == pool.count - 1 - len(held) and pool.held == len(held)
        for slot in range(len(self.expected)):
            self.check(slot)


def test_100_000_random_operations() -> None:
    """Prompts have few different beginnings, so that they share; the pool is too small for all slots."""
    drawn = random.Random(11)
    world = Sequences(pages=26)
    known = out_of_pages = refused = 0
    for step in range(100_000):
        slot = drawn.randrange(4)
        length = len(world.expected[slot])
        try:
            match drawn.choice(("begin", "begin", "append", "append", "token", "truncate", "fork", "clear")):
                case "begin":
                    beginning = [drawn.randrange(2)] * drawn.randrange(20)
                    known += world.begin(slot, [*beginning, *(drawn.randrange(3) for _ in range(1 + step % 9))]) > 0
                case "append" if length < 40:
                    world.append(slot, [drawn.randrange(3) for _ in range(drawn.randrange(1, 12))], step % 7 > 0)
                case "token" if length < 40:
                    world.append(slot, [drawn.randrange(3)])
                case "truncate":
                    given_back = 0 in world.tables.pages(slot)[SLIDING]
                    done = world.truncate(slot, drawn.randrange(length + 1))
                    assert done or given_back
                    refused += not done
                case "fork":
                    other = drawn.choice([each for each in range(4) if each != slot])
                    world.fork(other, slot)
                case "clear":
                    world.clear(slot)
        except OutOfPagesError:
            out_of_pages += 1
        world.check(drawn.randrange(4))
        if step % 20 == 0:
            world.check_all()
    world.check_all()
    assert known > 1000 and out_of_pages > 1000 and refused > 100
    for slot in range(4):
        world.clear(slot)
    assert world.tables.pool.available == 25


@pytest.mark.parametrize(("full", "window"), [(True, 0), (True, WINDOW), (True, 1), (True, 100)])
def test_layers_of_one_kind_or_both(full: bool, window: int) -> None:
    world = Sequences(pages=60, full=full, window=window)
    world.append(0, list(range(37)))
    world.fork(0, 1)
    world.append(0, [100, 101])
    world.append(1, [200])
    assert world.begin(2, list(range(40))) == 36
    world.check_all()
    assert set(world.tables.pages(0)) == ({FULL, SLIDING} if window else {FULL})


def test_sliding_layers_give_back_what_has_left_the_window() -> None:
    world = Sequences(pages=60)
    world.append(0, list(range(30)))
    world.append(0, [30])  # at position 30, which sees positions 25 to 29
    assert [page > 0 for page in world.tables.pages(0)[SLIDING]] == [False] * 6 + [True] * 2
    assert all(world.tables.pages(0)[FULL]) and world.tables.pool.held == 8 + 2


def test_a_fork_copies_the_page_that_changes() -> None:
    world = Sequences(pages=60)
    world.append(0, list(range(10)))
    before = world.tables.pool.held
    world.fork(0, 1)
    assert world.tables.pool.held == before  # nothing is copied yet
    world.append(1, [50])
    world.append(0, [60])
    world.check_all()
    of_0, of_1 = world.tables.pages(0), world.tables.pages(1)
    assert of_0[FULL][:2] == of_1[FULL][:2] and of_0[FULL][2] != of_1[FULL][2]
    assert of_0[SLIDING][-1] != of_1[SLIDING][-1]


def test_pages_given_back_serve_until_they_are_taken() -> None:
    world = Sequences(pages=24)
    world.append(0, list(range(30)))
    assert world.truncate(0, 10)
    world.check_all()
    world.append(0, list(range(10, 30)))
    while world.tables.pool.available:  # another sequence takes what is free
        world.append(1, [7])
        if world.tables.pool.available == 1:
            break
    assert not world.truncate(0, 10) and len(world.expected[0]) == 30
    world.check_all()


def test_reuse_begins_with_the_longest_known_prefix() -> None:
    world = Sequences(pages=60)
    assert world.begin(0, list(range(22))) == 0
    assert world.begin(1, [*range(17), 99, 98]) == 16  # of a running sequence
    assert world.begin(2, [99, *range(1, 22)]) == 0  # other tokens at the beginning
    world.clear(0)
    assert world.begin(3, list(range(22))) == 20  # of one that has ended
    assert world.begin(0, list(range(20))) == 16  # its last token is left to compute
    world.check_all()


def test_reuse_needs_the_window_of_sliding_layers() -> None:
    """The sliding pages in the middle of a long prompt were taken by others: only its end can be found."""
    world = Sequences(pages=40)
    prompt = list(range(60))
    world.append(0, prompt)
    taken = 100
    while world.tables.pool.available > 1:
        world.append(1, [taken])
        taken += 1
    world.clear(1)  # its pages are free, and hold what it wrote
    assert world.begin(2, [*prompt[:30], 1000]) == 0
    world.clear(2)
    assert world.begin(2, [*prompt, 1000]) == 56  # its last page is known with the next token
    world.check_all()


def test_a_page_is_not_found_by_its_own_tokens_alone() -> None:
    """The second page of the new prompt is known, behind another beginning."""
    world = Sequences(pages=60)
    world.begin(0, [*[1] * PAGE, *[3] * PAGE, 9])
    world.begin(1, [*[2] * PAGE, 8])
    world.append(0, [9])
    world.append(1, [8])  # the pages before are known now
    assert world.begin(2, [*[2] * PAGE, *[3] * PAGE, 9]) == PAGE


def test_a_page_that_has_to_be_copied_is_lacking() -> None:
    world = Sequences(pages=6)
    world.append(0, [1])
    world.append(1, [1])
    world.fork(0, 2)
    assert world.tables.lacking(2, 1, 1) == 1


def test_pages_that_others_share_do_not_become_free() -> None:
    world = Sequences(pages=8)
    world.append(0, [1] * 8)
    world.fork(0, 1)
    assert world.tables.lacking_anew(1, 16) == world.tables.needed_by(world.memory.layout, 16) - 3


def test_the_end_of_a_prefix_is_taken_first() -> None:
    """Of a prefix that nobody uses any more, its beginning can be reused longest."""
    world = Sequences(pages=9, window=0)
    prompt = list(range(5 * PAGE))
    world.append(0, prompt)
    world.append(0, [99])
    world.clear(0)
    world.append(1, [7] * 4 * PAGE)
    assert world.tables.reuse(2, prompt) == 4 * PAGE


def test_tokens_that_are_not_known_are_not_found() -> None:
    world = Sequences(pages=60)
    world.append(0, list(range(12)), told=False)
    assert world.begin(1, list(range(12))) == 0
    world.check_all()


def test_a_page_that_changes_is_found_no_more() -> None:
    world = Sequences(pages=60)
    world.append(0, list(range(12)))
    world.clear(0)
    assert world.begin(0, list(range(12))) == 8
    assert world.truncate(0, 6)
    world.append(0, [50, 51, 52])
    world.append(0, [53])  # the pages of the tokens before are known now
    assert world.begin(1, list(range(12))) == 4
    assert world.begin(2, [*range(6), 50, 51, 52]) == 8
    world.check_all()


def test_a_refused_reservation_changes_nothing() -> None:
    world = Sequences(pages=9)
    world.append(0, list(range(12)))
    with pytest.raises(OutOfPagesError, match="slot 1: 16 more tokens need 8 pages, and 2 of 8 are free"):
        world.tables.reserve(1, 0, 16)
    world.check_all()
    world.append(1, [1, 2, 3, 4])
    world.check_all()


@given(st.integers(3, 60), st.sampled_from([0, 1, 4, 6, 30]))
def test_the_capacity_is_what_fits(pages: int, window: int) -> None:
    world = Sequences(pages, window=window)
    capacity = world.tables.capacity
    world.append(0, list(range(capacity)))
    world.check_all()
    with pytest.raises(OutOfPagesError):
        world.append(0, [0] * PAGE * pages)
    assert world.tables.lacking_anew(0, capacity) == 0


@given(st.data())
def test_what_is_not_lacking_can_be_appended(data: st.DataObject) -> None:
    world = Sequences(pages=data.draw(st.integers(6, 30)))
    for slot in range(3):
        count = data.draw(st.integers(1, 40))
        length = len(world.expected[slot])
        if slot == 2 and data.draw(st.booleans()):
            world.fork(0, 2)
            length = len(world.expected[2])
        if world.tables.lacking(slot, length, count) == 0:
            world.append(slot, [slot] * count)
    world.check_all()


class TestPool:
    """Counts of holders, keys, the order in which free pages are taken."""

    def test_the_scratch_page_is_never_taken(self) -> None:
        pool = PagePool(4)
        assert sorted(pool.take() for _ in range(3)) == [1, 2, 3]
        with pytest.raises(OutOfPagesError, match="no free page: all 3 are in use"):
            pool.take()

    def test_pages_without_a_key_go_first_then_those_released_long_ago(self) -> None:
        pool = PagePool(5)
        pages = [pool.take() for _ in range(4)]
        for page in pages[:3]:
            pool.name(page, b"%d" % page)
        for page in pages:
            pool.release(page)
        assert [pool.take() for _ in range(4)] == [pages[3], *pages[:3]]
        assert pool.find(b"1") is None

    def test_a_free_page_is_found_and_held_again(self) -> None:
        pool = PagePool(3)
        page = pool.take()
        pool.name(page, b"key")
        pool.release(page)
        assert pool.find(b"key") == page and pool.available == 2
        assert pool.share(page) == page and pool.holders(page) == 1 and pool.available == 1
        pool.share(page)
        pool.release(page)
        assert pool.holders(page) == 1 and pool.held == 1

    def test_the_first_page_of_a_key_keeps_it(self) -> None:
        pool = PagePool(4)
        first, second = pool.take(), pool.take()
        pool.name(first, b"key")
        pool.name(second, b"key")
        assert pool.find(b"key") == first
        pool.forget(first)
        assert pool.find(b"key") is None

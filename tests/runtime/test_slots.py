"""What slots hold: lengths, how far a sequence can be shortened, and which call owns them."""

from __future__ import annotations

import pytest

from gptoss_export.errors import RunError
from gptoss_export.runtime.slots import Slots


@pytest.fixture
def slots() -> Slots:
    return Slots(count=3, max_context=400)


def test_lengths(slots: Slots) -> None:
    slots.extend(1, 5)
    slots.extend(1, 2)
    assert len(slots) == 3 and slots.lengths() == [0, 7, 0] and slots.length(1) == 7
    slots.clear(1)
    assert slots.lengths() == [0, 0, 0]


@pytest.mark.parametrize("length", [-1, 6])
def test_truncate_to_a_length_that_is_not_there(slots: Slots, length: int) -> None:
    slots.extend(2, 5)
    with pytest.raises(RunError, match=f"truncate to {length}: the sequence has 5 tokens; expected 0 to 5"):
        slots.truncate(2, length)


def test_room(slots: Slots) -> None:
    slots.extend(0, 390)
    slots.check_room(0, 10)
    with pytest.raises(RunError, match="slot 0: 390 tokens and 11 more exceed the context of 400"):
        slots.check_room(0, 11)
    slots.check_room(0, 400, fresh=True)
    with pytest.raises(RunError, match="slot 0: 0 tokens and 401 more"):
        slots.check_room(0, 401, fresh=True)


@pytest.mark.parametrize("slot", [-1, 3])
def test_slots_that_do_not_exist(slots: Slots, slot: int) -> None:
    calls = (slots.length, slots.clear, lambda s: slots.truncate(s, 0), lambda s: slots.check_room(s, 1))
    for call in calls:
        with pytest.raises(RunError, match=f"slot {slot}: expected 0 to 2"):
            call(slot)


def test_speculated_tokens_do_not_count(slots: Slots) -> None:
    for slot in (0, 1):
        slots.extend(slot, 4)
        slots.extend(slot, 1)
    slots.speculate([0, 1])
    assert [slots.length(slot) for slot in (0, 1)] == [4, 4] and slots.lengths() == [5, 5, 0]
    slots.rollback([1])
    assert slots.lengths() == [5, 4, 0] and slots.speculated == {0}
    slots.speculate(())
    assert [slots.length(slot) for slot in (0, 1)] == [5, 4] and slots.speculated == set()


def test_a_call_rolls_back_what_is_speculated(slots: Slots) -> None:
    epoch = slots.begin_call()
    slots.extend(0, 5)
    slots.speculate([0])
    assert slots.begin_call() == epoch + 1
    assert slots.lengths() == [4, 0, 0]
    with pytest.raises(RunError, match="another call used this runner in the meantime"):
        slots.check_epoch(epoch)
    slots.check_epoch(epoch + 1)

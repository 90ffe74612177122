"""Replicas are ranked by what they know and by how busy they are."""

from __future__ import annotations

import json

from gptoss_export.replicas.beginnings import beginnings
from gptoss_export.replicas.placement import Placement


def prompt(text: str) -> tuple[tuple[int, bytes], ...]:
    return beginnings(json.dumps({"prompt": text}).encode())


LONG = "a long text that somebody asks about " * 500  # 18,500 characters


def test_equal_replicas_take_turns() -> None:
    placement = Placement(1000)
    loads = {"a": 0.0, "b": 0.0, "c": 0.0}
    first = [placement.ranked((), loads)[0] for _ in range(9)]
    assert first == [*first[:3]] * 3
    assert sorted(first[:3]) == ["a", "b", "c"]


def test_the_least_loaded_comes_first() -> None:
    assert Placement(1000).ranked(prompt("short"), {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]


def test_the_one_that_knows_the_beginning_comes_first() -> None:
    placement = Placement(1000)
    placement.remember(prompt(LONG), "b")
    for _ in range(4):
        assert placement.ranked(prompt(LONG + "and more"), {"a": 0, "b": 0, "c": 0})[0] == "b"
    assert placement.ranked(prompt("something else"), {"a": 0, "b": 1, "c": 1})[0] == "a"


def test_unless_it_is_clearly_busier() -> None:
    placement = Placement(1000)
    placement.remember(prompt(LONG), "b")
    assert placement.ranked(prompt(LONG), {"a": 0, "b": 8})[0] == "b"  # 18,000 characters: eight requests
    assert placement.ranked(prompt(LONG), {"a": 0, "b": 10})[0] == "a"
    short = prompt("x" * 300)
    placement.remember(short, "b")
    assert placement.ranked(short, {"a": 0, "b": 1})[0] == "a"


def test_the_longest_beginning_wins() -> None:
    placement = Placement(1000)
    system = "You are a helpful assistant. " * 100
    placement.remember(prompt(system + "first " * 200), "a")
    placement.remember(prompt(system + "second " * 200), "b")
    assert placement.ranked(prompt(system + "first " * 250), {"a": 0, "b": 0})[0] == "a"
    assert placement.ranked(prompt(system + "second " * 250), {"a": 0, "b": 0})[0] == "b"


def test_several_replicas_can_know_a_beginning() -> None:
    placement = Placement(1000)
    placement.remember(prompt(LONG), "a")
    placement.remember(prompt(LONG), "b")
    first = {placement.ranked(prompt(LONG), {"a": 0, "b": 0, "c": 0})[0] for _ in range(4)}
    assert first == {"a", "b"}


def test_a_replica_that_is_gone_is_nobody() -> None:
    placement = Placement(1000)
    placement.remember(prompt(LONG), "gone")
    assert set(placement.ranked(prompt(LONG), {"a": 0, "b": 0})) == {"a", "b"}


def test_it_forgets_what_was_not_used_for_the_longest_time() -> None:
    placement = Placement(200)
    for number in range(100):
        placement.remember(prompt(f"{number} " * 4000), "a")
        assert len(placement) <= 200
    assert placement.ranked(prompt("99 " * 4000), {"a": 1, "b": 0})[0] == "a"
    assert placement.ranked(prompt("0 " * 4000), {"a": 1, "b": 0})[0] == "b"


def test_of_a_prompt_it_forgets_the_end_first() -> None:
    placement = Placement(30)
    placement.remember(prompt(LONG), "a")  # 42 hashes
    assert len(placement) == 30
    assert placement.ranked(prompt(LONG), {"a": 4, "b": 0})[0] == "a"

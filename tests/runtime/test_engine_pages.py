"""The engine over a KV cache of pages: who waits for pages, who loses them, who shares them. And masks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hashing_executor import alone, hashing_runner, paged_layout, prompt

from gptoss_export import Engine, SamplingParams
from gptoss_export.errors import RunError

GREEDY = SamplingParams()
both_ways = pytest.mark.parametrize("overlaps", [False, True], ids=["waits", "overlaps"])


@both_ways
@pytest.mark.parametrize("shares", [False, True])
def test_the_youngest_is_set_back_and_keeps_its_tokens(overlaps: bool, shares: bool) -> None:
    """Four sequences of up to 40 tokens over pages for little more than one. The first one never waits."""
    runner, executor = hashing_runner(
        slots=4, chunks=(16,), overlaps=overlaps, shares=shares, layout=paged_layout(24, chunk=16)
    )
    engine = Engine(runner, reuse=False)
    params = [SamplingParams(1.0, seed=index) if index % 2 else GREEDY for index in range(6)]
    handles = [engine.submit(prompt(index, 3 + index), 30, params[index], stop_tokens=()) for index in range(6)]
    for index, handle in enumerate(handles):
        assert handle.result().tokens == alone(prompt(index, 3 + index), 30, params[index], 40, stops=False)
    stats = engine.stats()
    assert stats.set_back > 0 and stats.held_pages == 0 and stats.pages == 23 and stats.reused_tokens == 0
    steps = [slots for kind, slots in executor.log if kind == "decode"]
    assert all(0 in slots for slots in steps[:29])


def test_prompts_wait_for_pages_in_their_order() -> None:
    """The second prompt does not fit beside the first one, and the third one, which would, does not overtake it."""
    runner, _ = hashing_runner(slots=3, chunks=(16,), layout=paged_layout(24, chunk=16))
    engine = Engine(runner)
    handles = [engine.submit(prompt(index, length), 4, stop_tokens=()) for index, length in enumerate((30, 31, 2))]
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (1, 2)
    for index, (handle, length) in enumerate(zip(handles, (30, 31, 2), strict=True)):
        assert handle.result().tokens == alone(prompt(index, length), 4, GREEDY, 40, stops=False)
    assert engine.stats().set_back == 0


def test_who_is_set_back_waits_before_all_others() -> None:
    """The second sequence loses its pages to the first one, and the third one, which waited, comes after it."""
    runner, executor = hashing_runner(slots=2, chunks=(16,), layout=paged_layout(18, chunk=16))
    engine = Engine(runner, reuse=False)
    handles = [engine.submit(prompt(index, 9), 20, stop_tokens=()) for index in range(3)]
    finished: list[int] = []
    while engine.step():
        finished += [at for at, handle in enumerate(handles) if handle.finish is not None and at not in finished]
    assert engine.stats().set_back > 0 and finished == [0, 1, 2]
    for index, handle in enumerate(handles):
        assert handle.result().tokens == alone(prompt(index, 9), 20, GREEDY, 40, stops=False)
    assert len([slots for kind, slots in executor.log if kind == "decode"]) > 20


def test_a_running_sequence_has_a_page_to_grow_into() -> None:
    """A prompt that would take the last pages waits: else the sequence before it would need one at once."""
    runner, _ = hashing_runner(slots=2, chunks=(16,), layout=paged_layout(21, chunk=16))
    engine = Engine(runner, reuse=False)
    first = engine.submit(prompt(0, 19), 6, stop_tokens=())
    engine.step()
    engine.step()
    held = engine.stats().held_pages
    second = engine.submit(prompt(1, 2 * (20 - held)), 2, stop_tokens=())
    engine.step()
    assert engine.stats().running == 1 and first.finish is None
    assert second.result().finish == "length" and engine.stats().set_back == 0


@both_ways
def test_the_next_turn_of_a_chat_prefills_only_what_is_new(overlaps: bool) -> None:
    runner, executor = hashing_runner(slots=2, chunks=(4,), overlaps=overlaps, layout=paged_layout(60))
    engine = Engine(runner)
    first = engine.submit(prompt(1, 12), 9, stop_tokens=()).result()
    executor.log.clear()
    second = [*prompt(1, 12), *first.tokens, 30, 31]
    result = engine.submit(second, 5, stop_tokens=()).result()
    assert result.tokens == alone(second, 5, GREEDY, 40, stops=False)
    assert engine.stats().reused_tokens == 20  # of 12 + 8 tokens that were in the cache
    assert (first.reused_tokens, result.reused_tokens) == (0, 20)
    assert [kind for kind, _ in executor.log].count("prefill") == 1


def test_a_common_beginning_is_shared_while_it_is_used() -> None:
    runner, _ = hashing_runner(slots=3, chunks=(16,), layout=paged_layout(60, chunk=16))
    engine = Engine(runner)
    common = prompt(1, 16)
    first = engine.submit([*common, 1], 20, stop_tokens=())
    for _ in range(3):
        engine.step()
    before = engine.stats().held_pages
    others = [engine.submit([*common, 2 + index], 3, stop_tokens=()) for index in range(2)]
    engine.step()
    assert engine.stats().reused_tokens == 2 * 16 and engine.stats().held_pages <= before + 2 * 2
    for index, handle in enumerate(others):
        assert handle.result().tokens == alone([*common, 2 + index], 3, GREEDY, 40, stops=False)
        assert handle.reused_tokens == 16
    assert first.result().tokens == alone([*common, 1], 20, GREEDY, 40, stops=False)


def test_nothing_is_reused_where_that_is_not_wanted() -> None:
    runner, _ = hashing_runner(layout=paged_layout(60))
    engine = Engine(runner, reuse=False)
    engine.generate([prompt(1, 12)] * 3, 4, stop_tokens=())
    engine.close()
    runner.executor.fixed_width = True
    always = Engine(runner)
    always.generate([prompt(1, 12)] * 3, 4, stop_tokens=())
    assert engine.stats().reused_tokens == always.stats().reused_tokens == 0


def test_a_pool_that_is_smaller_than_the_context() -> None:
    """A sequence ends where the pool ends, and a longer prompt is refused."""
    runner, _ = hashing_runner(slots=2, context=400, chunks=(4,), layout=paged_layout(14))
    assert runner.slots.max_context == 40
    with pytest.raises(RunError, match=r"0 tokens and 41 more exceed the context of 40 \(--kv-memory of the load\)"):
        runner.prefill(prompt(0, 41))
    result = Engine(runner).submit(prompt(0, 5), 100, stop_tokens=()).result()
    assert result.finish == "context" and result.tokens == alone(prompt(0, 5), 100, GREEDY, 40, stops=False)


@both_ways
def test_a_mask_sees_all_tokens_before(overlaps: bool) -> None:
    """Each token is 10 times its place, whatever the hash says; a neighbour is free."""
    runner, _ = hashing_runner(overlaps=overlaps)
    engine = Engine(runner)
    seen: list[int] = []

    def allowed(tokens: Sequence[int]) -> bytes:
        seen.append(len(tokens))
        return (1 << 10 * len(tokens)).to_bytes(8, "little")

    free = engine.submit(prompt(1, 5), 4, stop_tokens=())
    assert engine.submit(prompt(2, 5), 4, allowed=allowed, stop_tokens=()).result().tokens == [0, 10, 20, 30]
    assert free.result().tokens == alone(prompt(1, 5), 4, GREEDY, 40, stops=False)
    assert seen == [0, 1, 2, 3]

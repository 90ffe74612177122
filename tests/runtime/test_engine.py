"""The engine: requests join, leave, wait, fail and are cancelled, and each has the tokens that it has alone."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from hashing_executor import FAILS, NAN, STOP, HashingExecutor, alone, hashing_runner, paged_layout, prompt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gptoss_export import Engine, SamplingParams
from gptoss_export.errors import QueueFullError, RunError
from gptoss_export.runtime.generation import Token
from gptoss_export.runtime.request_handle import RequestHandle
from gptoss_export.runtime.scheduler import Scheduler

GREEDY = SamplingParams()
both_ways = pytest.mark.parametrize("overlaps", [False, True], ids=["waits", "overlaps"])


@both_ways
def test_any_number_of_prompts(overlaps: bool) -> None:
    """Twenty prompts over three slots, of one chunk and of several, greedy and drawn."""
    runner, _ = hashing_runner(overlaps=overlaps)
    prompts = [prompt(index, 1 + 5 * index % 23) for index in range(20)]
    params = [SamplingParams(1.0, seed=index) if index % 3 else GREEDY for index in range(20)]
    results = Engine(runner).generate(prompts, 30, params)
    for given, sampling, result in zip(prompts, params, results, strict=True):
        assert result.tokens == alone(given, 30, sampling, 40) and result.prompt_tokens == given
        full = len(given) + len(result.tokens) > 40
        expected = "stop" if result.tokens[-1] == STOP else "context" if full else "length"
        assert result.finish == expected and result.logprobs == [-1.0] * len(result.tokens)
    assert {result.finish for result in results} == {"stop", "context", "length"}


@both_ways
def test_no_stream_waits_longer_than_one_chunk(overlaps: bool) -> None:
    runner, executor = hashing_runner(overlaps=overlaps)
    engine = Engine(runner)
    first = engine.submit(prompt(1, 3), 20, stop_tokens=())
    for _ in range(4):
        engine.step()
    second = engine.submit(prompt(2, 23), 5, stop_tokens=())
    before = len(executor.log)
    second.result()
    work = executor.log[before:]
    chunks = [index for index, (kind, _) in enumerate(work) if kind == "prefill"]
    assert len(chunks) == 6 and all(work[index + 1] == ("decode", [0]) for index in chunks[:-1])
    assert first.result().tokens == alone(prompt(1, 3), 20, GREEDY, 40, stops=False)


@both_ways
def test_short_prompts_share_a_chunk(overlaps: bool) -> None:
    runner, executor = hashing_runner(slots=4, chunks=(64,), overlaps=overlaps, shares=True)
    prompts = [prompt(index, length) for index, length in enumerate((5, 17, 16, 9))]  # 1 + 2 + 1 segments, then 1
    results = Engine(runner).generate(prompts, 6, stop_tokens=())
    assert [result.tokens for result in results] == [alone(given, 6, GREEDY, 40, stops=False) for given in prompts]
    assert [slots for kind, slots in executor.log if kind == "prefill"] == [[0, 1, 2], [3]]


def test_a_prompt_that_fails_does_not_fail_those_in_its_chunk() -> None:
    runner, _ = hashing_runner(slots=4, chunks=(64,), shares=True)
    engine = Engine(runner)
    handles = [engine.submit([index, *([FAILS] if index == 2 else [])], 5, stop_tokens=()) for index in range(4)]
    with pytest.raises(RunError, match="this prompt fails"):
        handles[2].result()
    for index in (0, 1, 3):
        assert handles[index].result().tokens == alone([index], 5, GREEDY, 40, stops=False)


def test_requests_wait_in_their_order() -> None:
    engine = Engine(hashing_runner(slots=1)[0])
    handles = [engine.submit(prompt(index, 2), 3, stop_tokens=()) for index in range(4)]
    assert engine.stats().waiting == 4
    finished: list[int] = []
    while engine.step():
        finished += [
            index for index, handle in enumerate(handles) if handle.finish is not None and index not in finished
        ]
    assert finished == [0, 1, 2, 3]
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.ended, stats.tokens) == (0, 0, 4, 12)


def test_too_many_waiting_requests() -> None:
    engine = Engine(hashing_runner(slots=1)[0], most_waiting=2)
    first = engine.submit([1], 5)
    engine.step()  # it has the slot
    handles = [engine.submit([2], 5), engine.submit([3], 5)]
    with pytest.raises(QueueFullError, match="2 requests wait already, expected fewer than 2"):
        engine.submit([4], 5)
    assert [handle.result().tokens for handle in (first, *handles)] == [alone([n], 5, GREEDY, 40) for n in (1, 2, 3)]
    assert len(engine.generate([[5]] * 7, 2)) == 7  # as many as the caller gives


@both_ways
def test_a_request_is_cancelled(overlaps: bool) -> None:
    engine = Engine(hashing_runner(slots=2, overlaps=overlaps)[0])
    running, other = engine.submit([1, 2], 30, stop_tokens=()), engine.submit([3], 30, stop_tokens=())
    waiting = engine.submit([4], 3)
    seen = [next(running) for _ in range(3)]
    running.cancel()
    waiting.cancel()
    assert waiting.result().finish == "cancelled" and waiting.result().tokens == []
    assert running.result().finish == "cancelled"
    assert [token.id for token in [*seen, *running]] == running.result().tokens
    assert len(running.result().tokens) < 10
    assert len(other.result().tokens) == 30 and other.result().finish == "length"
    running.cancel()  # nothing is left to end
    assert engine.step() is False and running.result().finish == "cancelled"


@both_ways
def test_a_request_that_fails_ends_alone(overlaps: bool) -> None:
    runner, _ = hashing_runner(overlaps=overlaps)
    engine = Engine(runner)
    fine = engine.submit(prompt(1, 9), 20, stop_tokens=())
    fails = engine.submit([*prompt(2, 6), FAILS], 20)
    nan = engine.submit([5, NAN], 20)
    after = engine.submit(prompt(3, 4), 20, stop_tokens=())
    with pytest.raises(RunError, match="this prompt fails"):
        fails.result()
    with pytest.raises(RunError, match=r"log probability of token \d+ is nan"):
        list(nan)
    assert fails.finish == nan.finish == "error" and isinstance(fails.error, RunError)
    assert [len(handle.result().tokens) for handle in (fine, after)] == [20, 20]


@both_ways
def test_a_step_that_fails_ends_those_that_take_part(overlaps: bool) -> None:
    runner, executor = hashing_runner(slots=2, overlaps=overlaps)
    engine = Engine(runner)
    first, second = engine.submit([1], 20, stop_tokens=()), engine.submit([2], 20, stop_tokens=())
    waiting = engine.submit([3], 20, stop_tokens=())
    next(first), next(second)
    executor.fails = RuntimeError("the device is lost")
    for handle in (first, second):
        with pytest.raises(RuntimeError, match="the device is lost"):
            handle.result()
    assert len(waiting.result().tokens) == 20


def test_an_engine_survives_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits gets the error, with a thread too. Later requests are served."""
    runner, _ = hashing_runner()
    with Engine(runner) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Scheduler, "step", fail)
            handles = [engine.submit([1], 5), engine.submit([2], 5)]
            for handle in handles:
                with pytest.raises(AssertionError, match="a bug"):
                    handle.result()
        assert engine.submit([3], 5).result().tokens == alone([3], 5, GREEDY, 40)


def fail(_: Scheduler) -> None:
    raise AssertionError("a bug")


def test_a_callback_that_fails_ends_its_request() -> None:
    engine = Engine(hashing_runner()[0])
    seen: list[Token] = []

    def fails(token: Token) -> None:
        seen.append(token)
        if len(seen) == 3:
            raise ValueError("enough")

    fine = engine.submit([1], 20, stop_tokens=(), on_token=(all_seen := []).append)
    handle = engine.submit([2], 20, stop_tokens=(), on_token=fails)
    with pytest.raises(ValueError, match="enough"):
        handle.result()
    tokens = fine.result().tokens
    assert [token.id for token in seen] == alone([2], 20, GREEDY, 40)[:3]
    assert [token.id for token in all_seen] == tokens and len(tokens) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt: no tokens"),
        ({"prompt": [50]}, "token 50: expected ids of 0 to 49"),
        ({"prompt": [1] * 41}, "prompt: 41 tokens exceed the context of 40"),
        ({"prompt": [1], "max_new_tokens": 0}, "max_new_tokens: found 0, expected 1 or more"),
        ({"prompt": [1], "stop_tokens": [99]}, "stop token 99"),
        ({"prompt": [1], "sampling": 3}, "sampling: found 3, expected SamplingParams"),
    ],
)
def test_a_wrong_request_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    engine = Engine(hashing_runner()[0])
    with pytest.raises(RunError, match=message):
        engine.submit(**arguments)
    assert engine.stats().waiting == 0


def test_stop_tokens_of_an_iterator_stop_every_prompt() -> None:
    runner, _ = hashing_runner()
    prompts = [[1], [2], [3]]
    tokens = {prompt[0]: alone(prompt, 20, GREEDY, 40, stops=False) for prompt in prompts}
    stops = [tokens[1][3], tokens[2][4], tokens[3][5]]
    expected = [min(tokens[n].index(stop) + 1 for stop in stops if stop in tokens[n]) for n in (1, 2, 3)]
    for generate in (runner.generate_batch, Engine(hashing_runner()[0]).generate):
        found = generate(prompts, 20, stop_tokens=iter(stops))  # type: ignore[arg-type]
        assert [len(result.tokens) for result in found] == expected
        assert {result.finish for result in found} == {"stop"}


def test_the_runner_is_lent_until_the_engine_is_closed() -> None:
    runner, _ = hashing_runner()
    runner.prefill([1, 2])
    engine = Engine(runner)
    for call in (lambda: runner.reset(), lambda: runner.generate([1]), lambda: Engine(runner)):
        with pytest.raises(RunError, match="an engine uses this runner; submit to the engine, or close it"):
            call()
    handle = engine.submit([1], 20, stop_tokens=())
    next(handle)
    engine.close()
    engine.close()
    assert handle.result().finish == "cancelled" and engine.step() is False
    with pytest.raises(RunError, match="the engine was closed"):
        engine.submit([1])
    assert len(runner.generate([1], 5, stop_tokens=()).tokens) == 5


def test_an_engine_that_is_forgotten_gives_the_runner_back() -> None:
    runner, _ = hashing_runner()
    engine = Engine(runner)
    engine.submit([1])
    del engine
    gc.collect()
    assert runner.generate([1], 5, stop_tokens=()).finish == "length"


def test_generate_raises_the_error_of_a_prompt_and_ends_the_others() -> None:
    engine = Engine(hashing_runner()[0])
    with pytest.raises(RunError, match="this prompt fails"):
        engine.generate([[1], [FAILS], [3], [4]], 30, stop_tokens=())
    while engine.step():
        pass
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.ended) == (0, 0, 4) and stats.tokens < 90


@pytest.mark.parametrize("threaded", [False, True])
def test_a_callback_may_close_the_engine(threaded: bool) -> None:
    engine = Engine(hashing_runner()[0])
    handles = [engine.submit([number], 20, stop_tokens=(), on_token=lambda _: engine.close()) for number in range(3)]
    if threaded:
        engine.start()
    assert {handle.result().finish for handle in handles} == {"cancelled"}


@both_ways
def test_many_threads(overlaps: bool) -> None:
    """Threads submit, read and cancel while the engine's thread takes the steps."""
    runner, _ = hashing_runner(overlaps=overlaps)
    wrong: list[str] = []

    def client(number: int) -> None:
        for round_ in range(5):
            given = prompt(10 * number + round_, 1 + (number + round_) % 9)
            handle = engine.submit(given, 15)
            first = [next(handle)] if round_ == 3 else []
            if first:
                handle.cancel()
            found = [token.id for token in (*first, *handle)] if round_ % 2 else handle.result().tokens
            expected = alone(given, 15, GREEDY, 40)
            if found != expected and (round_ != 3 or handle.result().finish != "cancelled"):
                wrong.append(f"{number} {round_}: {found} {expected}")

    with Engine(runner) as engine:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert engine.stats().ended == 60
    assert not wrong


def test_asyncio() -> None:
    """Tasks read beside each other; a task that is cancelled does not disturb the others."""
    runner, _ = hashing_runner(overlaps=True)

    async def read(handle: RequestHandle) -> list[int]:
        return [token.id async for token in handle]

    async def main() -> list[Any]:
        handles = [engine.submit(prompt(index, 5), 12) for index in range(8)]
        tasks = [asyncio.create_task(read(handle)) for handle in handles]
        tasks[3].cancel()
        failing = engine.submit([FAILS], 12)
        with pytest.raises(RunError, match="this prompt fails"):
            await read(failing)
        return await asyncio.gather(*tasks, return_exceptions=True)

    engine = Engine(runner)
    results = asyncio.run(main())
    engine.close()
    assert isinstance(results[3], asyncio.CancelledError)
    for index in (0, 1, 2, 4, 5, 6, 7):
        assert results[index] == alone(prompt(index, 5), 12, GREEDY, 40)


class RandomRequests(RuleBasedStateMachine):
    """Random arrivals, steps, cancellations and failures, with and without pages."""

    engine: Engine
    executor: HashingExecutor

    @initialize(
        slots=st.integers(1, 4),
        overlaps=st.booleans(),
        chunk=st.sampled_from((1, 4, 16, 64)),
        shares=st.booleans(),
        pages=st.one_of(st.none(), st.integers(13, 40)),
        window=st.sampled_from((0, 1, 6)),
    )
    def make(self, slots: int, overlaps: bool, chunk: int, shares: bool, pages: int | None, window: int) -> None:
        layout = None if pages is None else paged_layout(pages, chunk, window)
        runner, self.executor = hashing_runner(slots, 24, (chunk,), overlaps, shares, layout)
        assert runner.slots.max_context == 24
        self.engine = Engine(runner)
        self.handles: list[tuple[RequestHandle, list[int]]] = []
        self.failed_steps = False

    @rule(
        tokens=st.one_of(
            st.lists(st.one_of(st.integers(0, 46), st.sampled_from((FAILS, NAN))), min_size=1, max_size=24),
            st.lists(st.integers(0, 1), min_size=5, max_size=20),  # they begin alike
        ),
        count=st.integers(1, 12),
        seed=st.one_of(st.none(), st.integers(0, 5)),
    )
    def submit(self, tokens: list[int], count: int, seed: int | None) -> None:
        params = GREEDY if seed is None else SamplingParams(1.0, seed=seed)
        handle = self.engine.submit(tokens, count, params)
        self.handles.append((handle, alone(tokens, count, params, 24)))

    @rule(steps=st.integers(1, 9))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.handles:
            data.draw(st.sampled_from(self.handles))[0].cancel()

    @rule()
    def fail(self) -> None:
        self.executor.fails = RunError("a step fails")
        self.failed_steps = True

    @invariant()
    def tokens_are_those_of_the_request_alone(self) -> None:
        for handle, expected in getattr(self, "handles", ()):
            found = handle.tokens
            assert found == expected[: len(found)]
            if handle.finish in ("stop", "length", "context"):
                assert found == expected
            elif handle.finish == "error":
                given = handle.request.prompt
                assert FAILS in given or NAN in given or self.failed_steps

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.step():
            pass
        self.tokens_are_those_of_the_request_alone()
        assert all(handle.finish is not None for handle, _ in self.handles)
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.ended, stats.held_pages) == (0, 0, len(self.handles), 0)


TestRandomRequests = RandomRequests.TestCase
TestRandomRequests.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)

"""Serve's router with replicas that a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed; pip install 'gptoss-export[ray]'")

from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from gptoss_export.replicas import router as router_module
from gptoss_export.replicas.calls import Call
from gptoss_export.replicas.router import PrefixRouter

DEPLOYMENT = DeploymentID("Replica", "app")
BEGINNINGS = ((256, b"one"), (40_000, b"two"))


@dataclass
class ScriptedReplica:
    """A replica that says how many requests it has: `length`, or what it raises, or nothing at all (None)."""

    name: str
    length: int | Exception | None = 0
    asked: int = 0
    max_ongoing_requests: int = 100
    replica_id: ReplicaID = field(init=False)

    def __post_init__(self) -> None:
        self.replica_id = ReplicaID(self.name, DEPLOYMENT)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        """The number of its requests."""
        self.asked += 1
        if self.length is None:
            await asyncio.sleep(1000)
        if isinstance(self.length, Exception):
            raise self.length
        assert self.length is not None
        return self.length


def pending(call: Call) -> PendingRequest:
    return PendingRequest([call], {}, RequestMetadata("request", "internal", is_streaming=True))


def run(
    script: Callable[[PrefixRouter, Callable[..., Any]], Coroutine[Any, Any, None]], *replicas: ScriptedReplica
) -> None:
    """Run a script with a router of some replicas, and a function that chooses among them."""

    async def all_of_it() -> None:
        router = PrefixRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
        router.initialize_state(known=1000)
        router.update_replicas(list(replicas))
        await asyncio.sleep(0.01)

        async def chosen(call: Call = Call("POST", "/")) -> list[str]:  # noqa: B008
            there = list(router.curr_replicas.values())
            ranks = await router.choose_replicas(there, pending(call))
            assert all(len(rank) <= 1 for rank in ranks)
            return [rank[0].replica_id.unique_id for rank in ranks if rank]

        await script(router, chosen)

    asyncio.run(all_of_it())


def sent(router: PrefixRouter, name: str, requests: int, call: Call = Call("POST", "/")) -> None:  # noqa: B008
    """A request was sent to a replica, which has taken it and says how many it has."""
    key = ReplicaID(name, DEPLOYMENT)
    router.on_send_request(key)
    router.on_new_queue_len_info(key, requests)
    router.on_request_routed(pending(call), key, None)


def test_the_least_loaded() -> None:
    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        assert await chosen() == ["b", "c", "a"]

    run(script, ScriptedReplica("a", 5), ScriptedReplica("b", 1), ScriptedReplica("c", 2))


def test_requests_that_come_at_once_are_spread() -> None:
    """Each counts before it has been sent."""

    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        first = [(await chosen())[0] for _ in range(20)]
        assert first.count("a") == first.count("b") == 10

    run(script, ScriptedReplica("a"), ScriptedReplica("b"))


def test_the_one_that_was_sent_the_beginning() -> None:
    call = Call("POST", "/", beginnings=BEGINNINGS)

    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        assert (await chosen(call))[0] == "a"
        sent(router, "a", 1, call)
        assert (await chosen(call))[0] == "a"
        assert (await chosen())[0] == "b"
        router.on_new_queue_len_info(ReplicaID("a", DEPLOYMENT), 50)
        assert (await chosen(call))[0] == "b"

    run(script, ScriptedReplica("a"), ScriptedReplica("b"))


def test_one_that_was_lost_is_the_last_choice() -> None:
    call = Call("POST", "/", beginnings=BEGINNINGS)

    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        sent(router, "a", 1, call)
        assert await chosen(replace(call, avoided=("a",))) == ["b", "a"]
        assert await chosen(replace(call, avoided=("a", "b"))) == ["a", "b"]
        assert await chosen(call) == ["a", "b"]

    run(script, ScriptedReplica("a"), ScriptedReplica("b"))


def test_one_replica_by_its_place() -> None:
    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        found = [await chosen(Call("GET", "/metrics", place=place)) for place in range(4)]
        assert found == [["a"], ["b"], ["c"], []]

    run(script, ScriptedReplica("c", 1), ScriptedReplica("a", 7), ScriptedReplica("b"))


def test_a_replica_that_does_not_answer_is_the_last_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody waits for it a second time."""
    monkeypatch.setattr(router_module, "_PROBE_SECONDS", 0.1)
    monkeypatch.setattr(router_module, "_SILENT_SECONDS", 0.05)
    busy, silent = ScriptedReplica("busy", 40), ScriptedReplica("silent", 0)

    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        assert await chosen() == ["silent", "busy"]
        router.on_send_request(silent.replica_id)  # it does not say that it takes it
        silent.length = None
        await asyncio.sleep(0.1)
        assert await chosen() == ["busy", "silent"]
        async with asyncio.timeout(0.05):
            assert await chosen() == ["busy", "silent"]
        silent.length = 0
        await asyncio.sleep(0.15)
        await chosen()
        await asyncio.sleep(0.01)
        assert await chosen() == ["silent", "busy"]

    run(script, busy, silent)


def test_a_replica_that_has_died_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = ScriptedReplica("dead", ActorDiedError())

    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        assert (await chosen())[0] == "alive"
        assert await chosen() == ["alive"]

    run(script, dead, ScriptedReplica("alive", 30))


def test_one_that_waits_is_cancelled_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests wait for the number of a replica's requests; one of them is cancelled."""
    slow = ScriptedReplica("slow", None)
    monkeypatch.setattr(router_module, "_PROBE_SECONDS", 0.2)

    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        router.on_replica_actor_unavailable(slow.replica_id)  # its number is not known any more
        first, second = asyncio.create_task(chosen()), asyncio.create_task(chosen())
        await asyncio.sleep(0.05)
        first.cancel()
        assert await second == ["slow"]
        assert first.cancelled()

    run(script, slow)


def test_nothing_is_kept_of_replicas_that_are_gone() -> None:
    async def script(router: PrefixRouter, chosen: Callable[..., Any]) -> None:
        for _ in range(5):
            await chosen()
        router.update_replicas([replica for name, replica in there.items() if name == "b"])
        assert await chosen() == ["b"]
        gone = there["a"].replica_id
        assert gone not in router._unsent and gone not in router._unanswered

    there = {name: ScriptedReplica(name) for name in ("a", "b")}
    run(script, *there.values())

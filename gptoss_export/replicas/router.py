"""Serve's router of requests to replicas: the best one by Placement."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from typing import Any

from ray.exceptions import ActorDiedError, RayError
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from .calls import Call
from .placement import Placement

_PROBE_SECONDS = 1.0  # for a replica to say how many requests it has
_UNSENT_SECONDS = 1.0  # a request that was not sent to its replica by then was cancelled
_SILENT_SECONDS = 3.0  # a replica that has not said by then whether it takes a request may be lost


class PrefixRouter(RequestRouter):
    """Sends a request to the replica that knows the beginning of its prompt, unless it is clearly busier than others.

    How many requests a replica has, it says itself each time it takes one, to all ingresses. A replica that does not
    answer is the last choice until it does.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """known: most beginnings of prompts that are remembered"""
        self._placement = Placement(kwargs["known"])
        self._unsent: defaultdict[ReplicaID, deque[float]] = defaultdict(deque)  # when a replica was chosen
        self._unanswered: dict[ReplicaID, float] = {}  # since when a replica that was chosen says nothing
        self._silent: set[ReplicaID] = set()  # replicas that were asked and did not answer
        self._probes: dict[ReplicaID, asyncio.Task[None]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas, each a rank of its own, the best first."""
        if pending_request is not None:  # where all are full, Serve waits before it asks again
            pending_request.routing_context.should_backoff = True
        call = _call(pending_request)
        if call.place is not None:
            by_place = sorted(candidate_replicas, key=lambda replica: replica.replica_id.unique_id)
            return [by_place[call.place : call.place + 1]]
        lengths = await self._queue_lengths(candidate_replicas)
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        last = [name for name in by_name if name in call.avoided or by_name[name].replica_id in self._silent]
        loads = {name: lengths[by_name[name].replica_id] for name in by_name if name not in last}
        ranked = self._placement.ranked(call.beginnings, loads) if loads else []
        names = [*ranked, *last]
        if names:
            best, now = by_name[names[0]].replica_id, time.monotonic()
            self._unsent[best].append(now)
            self._unanswered.setdefault(best, now)
        return [[by_name[name]] for name in names]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica has taken a request."""
        self._placement.remember(_call(pending_request).beginnings, replica_id.unique_id)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A request is sent to a replica, and counts from now on."""
        super().on_send_request(replica_id)
        if unsent := self._unsent[replica_id]:
            unsent.popleft()

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """A replica says how many requests it has."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._unanswered.pop(replica_id, None)
        self._silent.discard(replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve has started or ended replicas."""
        super().update_replicas(replicas)
        there = {replica.replica_id for replica in replicas}
        self._silent &= there
        for known in (self._unsent, self._unanswered):
            for gone in known.keys() - there:
                del known[gone]

    async def _queue_lengths(self, replicas: list[RunningReplica]) -> dict[ReplicaID, float]:
        """Requests of each replica. One whose number is not known is asked for it, and one that owes an answer. For one
        that did not answer before, nobody waits a second time: it is asked meanwhile."""
        now = time.monotonic()
        asked = []
        for replica in replicas:
            key = replica.replica_id
            owes = now - self._unanswered.get(key, now) > _SILENT_SECONDS
            if key in self._silent or owes or self.replica_queue_len_cache.get(key) is None:
                probe = self._probe(replica)
                if key not in self._silent:
                    asked.append(probe)
        if asked:
            await asyncio.wait(asked)
        lengths: dict[ReplicaID, float] = {}
        for replica in replicas:
            key = replica.replica_id
            unsent = self._unsent[key]
            while unsent and now - unsent[0] > _UNSENT_SECONDS:
                unsent.popleft()
            lengths[key] = (self.replica_queue_len_cache.get(key) or 0) + len(unsent)
        return lengths

    def _probe(self, replica: RunningReplica) -> asyncio.Task[None]:
        """Ask a replica for the number of its requests, once at a time."""
        key = replica.replica_id
        if key not in self._probes:
            self._probes[key] = asyncio.create_task(self._asked(replica))
            self._probes[key].add_done_callback(lambda _: self._probes.pop(key, None))
        return self._probes[key]

    async def _asked(self, replica: RunningReplica) -> None:
        key = replica.replica_id
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                length = await replica.get_queue_len(deadline_s=_PROBE_SECONDS)
        except ActorDiedError:
            self.on_replica_actor_died(key)
        except (RayError, TimeoutError):
            self._silent.add(key)
        else:
            self.on_new_queue_len_info(key, length)


def _call(request: PendingRequest | None) -> Call:
    """What is asked of a replica; nothing in particular where Serve does not say it."""
    call = request.args[0] if request is not None and request.args else None
    return call if isinstance(call, Call) else Call("", "")

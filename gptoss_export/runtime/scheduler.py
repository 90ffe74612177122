"""Scheduler: what an executor does next for many sequences, and what that makes of them.

A step of the scheduler is one prefill chunk, which prompts may share, or one decode step of all sequences whose prompts
are in the cache. Sequences wait for a free slot, and for the pages of their prompts, in the order in which they came.

  serving    a prefill chunk and a decode step take turns, so that no running sequence waits longer than for one chunk
  otherwise  all prompts come first, then the sequences start together

Where the executor can launch a step before the host has read the tokens of the last one (`overlaps_steps`), it is
launched. If one of those tokens ends its sequence, the step was one too many for it, and is rolled back.

When pages run out, the sequence that got its slot last is set back: it loses its pages and waits again, before all
others. Later its prompt and its tokens so far are prefilled, and it goes on with the next token.

A sequence that fails ends alone, with its error. A step that fails ends all sequences that take part in it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import OutOfPagesError, RunError
from ..model.sampling_state import Choice
from .executor import Executor, Part, PendingTokens, Prompt, Sampling
from .running_sequence import NewToken, Request, RunningSequence
from .slots import Slots


@dataclass(frozen=True)
class StepResult:
    """What a step of the scheduler has brought: tokens in the order of their slots, and the sequences that ended."""

    tokens: list[NewToken]
    ended: list[RunningSequence]


@dataclass(frozen=True)
class _Flight:
    """Tokens on their way to the host, and whose they are."""

    pending: PendingTokens
    sequences: list[RunningSequence]


class Scheduler:
    """Takes over all slots when it is made. A call of someone else that takes them over ends it: the next `step` raises
    RunError.

    serving  prompts and steps take turns, a sequence begins with the pages of a known prefix, and it gives its pages
             back when it ends. Otherwise the slots hold their sequences until someone takes them over
    reuse    whether sequences may begin with the pages of a known prefix

    set_back  how often a sequence was set back
    reused    tokens of prompts that were found in the cache
    """

    def __init__(self, executor: Executor, slots: Slots, serving: bool, reuse: bool = True) -> None:
        self._executor, self._slots, self._serving = executor, slots, serving
        self._reuse = serving and reuse and not executor.fixed_width
        self.set_back = self.reused = 0
        self._epoch = slots.begin_call()
        for slot in range(len(slots)):
            slots.clear(slot)
            slots.adapt(slot, None)
        self._waiting: deque[RunningSequence] = deque()
        self._running: dict[int, RunningSequence] = {}  # by slot
        self._ready: list[RunningSequence] = []  # their prompts are in the cache, their first tokens not yet chosen
        self._flights: deque[_Flight] = deque()
        self._ended: list[RunningSequence] = []
        self._tokens: list[NewToken] = []
        self._prefilled_last = False
        self._blocked: tuple[RunningSequence, int] | None = None  # it did not fit into so many free pages

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._waiting or self._running or self._flights or self._ended)

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    def add(self, request: Request) -> RunningSequence:
        """A sequence that continues the request as soon as a slot is free."""
        sequence = RunningSequence(request)
        self._waiting.append(sequence)
        return sequence

    def cancel(self, sequence: RunningSequence) -> None:
        """End a sequence now, unless it has ended."""
        if sequence.finish is None:
            if sequence.slot is None:
                self._waiting.remove(sequence)
            self._end(sequence, "cancelled")

    def check_owner(self) -> None:
        """Raise RunError where another call has taken the slots over."""
        self._slots.check_epoch(self._epoch)

    def step(self) -> StepResult:
        """One prefill chunk or decode step, and the tokens that are known by then. Raises RunError as `check_owner`."""
        self.check_owner()
        self._admit()
        launched = self._launch()
        self._land(leave=1 if launched and self._executor.overlaps_steps else 0)
        ended, self._ended = self._ended, []
        tokens, self._tokens = self._tokens, []
        return StepResult(tokens, ended)

    def _admit(self) -> None:
        admitted: dict[int, RunningSequence] = {}
        for slot in range(len(self._slots)):
            if not self._waiting:
                break
            if slot in self._running:
                continue
            sequence = self._waiting[0]
            if not self._begin(sequence, slot):
                break
            self._waiting.popleft()
            sequence.slot = slot
            self._running[slot] = admitted[slot] = sequence
        if admitted:
            with self._failing([*admitted.values()]):
                self._executor.set_sampling({slot: _sampling(sequence) for slot, sequence in admitted.items()})

    def _begin(self, sequence: RunningSequence, slot: int) -> bool:
        """Empty a slot for a sequence, with the prefix that the cache knows. False where its prompt does not fit beside
        the running sequences; it fits alone, as all prompts of requests do."""
        slots, pages = self._slots, self._slots.pages
        if pages is not None and self._running and self._blocked == (sequence, pages.pool.available):
            return False
        slots.clear(slot)
        slots.adapt(slot, sequence.request.adapter)
        sequence.cached = slots.reuse(slot, sequence.prompt) if self._reuse else 0
        if pages is not None and self._running:
            prompts = self._prompts()
            promised = sum(pages.promised(other.slot or 0, len(other.prompt)) for other in prompts)
            # A page more for each running sequence, so that it is not set back at once.
            needed = pages.promised(slot, len(sequence.prompt)) + promised + len(self._running)
            if needed > pages.pool.available:
                slots.clear(slot)
                self._blocked = sequence, pages.pool.available
                return False
        self.reused += sequence.cached
        if sequence.reused is None:
            sequence.reused = sequence.cached
        return True

    def _launch(self) -> bool:
        """Start one piece of work; whether tokens are chosen by it."""
        in_order = [self._running[slot] for slot in sorted(self._running)]
        decoding = [sequence for sequence in in_order if self._goes_on(sequence)]
        prompts = self._prompts()
        before = self._flights[-1] if self._flights else None
        if prompts and not (decoding and self._serving and self._prefilled_last):
            self._prefill(prompts)
            self._prefilled_last = True
        elif decoding:
            self._decode(decoding)
            self._prefilled_last = False
        if self._ready and (self._serving or not self._prompts()):
            self._choose_first()
        return bool(self._flights) and self._flights[-1] is not before

    def _prompts(self) -> list[RunningSequence]:
        """The sequences whose prompts are not yet in the cache, in the order in which they came."""
        return [sequence for sequence in self._running.values() if not sequence.has_prompt]

    def _goes_on(self, sequence: RunningSequence) -> bool:
        """Whether a decode step can take the sequence: it has a token, and room for it."""
        if sequence.slot is None or not sequence.has_prompt or sequence in self._ready:
            return False
        room = self._slots.lengths()[sequence.slot] < self._slots.max_context
        return room and sequence.finish is None and 0 < sequence.started < sequence.request.max_new_tokens

    def _make_room(self, sequence: RunningSequence, count: int) -> bool:
        """Reserve the pages of the next `count` tokens of a sequence, if necessary by setting back younger ones. False
        where it was set back itself, or has ended."""
        while sequence.slot is not None and sequence.finish is None:
            try:
                self._slots.reserve(sequence.slot, count)
            except OutOfPagesError as error:
                if self._flights:  # their tokens are known first; and who ends gives pages back
                    self._land(leave=0)
                elif idle := [slot for slot in range(len(self._slots)) if self._left_behind(slot)]:
                    self._slots.clear(idle[0])
                elif len(self._running) > 1:
                    self._set_back(next(reversed(self._running.values())))
                else:
                    self._end(sequence, "error", error)
            else:
                return True
        return False

    def _left_behind(self, slot: int) -> bool:
        """Whether a slot holds a sequence that has ended."""
        return slot not in self._running and self._slots.lengths()[slot] > 0

    def _set_back(self, sequence: RunningSequence) -> None:
        """Take a sequence's slot and pages away. All its tokens are known to the host."""
        assert sequence.slot is not None
        if sequence in self._ready:
            self._ready.remove(sequence)
        self._slots.clear(sequence.slot)
        del self._running[sequence.slot]
        sequence.slot, sequence.cached, sequence.started = None, 0, len(sequence.tokens)
        sequence.prompt = [*sequence.request.prompt, *sequence.tokens]
        self._waiting.appendleft(sequence)
        self.set_back += 1

    def _prefill(self, sequences: list[RunningSequence]) -> None:
        """A chunk with the next tokens of these prompts."""
        prompts = [
            Prompt(sequence.slot or 0, sequence.cached, sequence.prompt[sequence.cached :]) for sequence in sequences
        ]
        chunk = {part.slot: part for part in self._executor.shared_chunk_of(prompts)}
        of_chunk = [sequence for sequence in sequences if sequence.slot in chunk]
        taking = [(each, chunk[each.slot or 0]) for each in of_chunk]
        taking = [(each, part) for each, part in taking if self._make_room(each, len(part.tokens))]
        taking = [(each, part) for each, part in taking if each.slot == part.slot and each.finish is None]
        if taking:
            self._prefill_chunk(taking)

    def _prefill_chunk(self, taking: list[tuple[RunningSequence, Part]]) -> None:
        try:
            outputs = self._executor.prefill_shared([part for _, part in taking])
        except Exception as error:
            if len(taking) > 1:  # the first one alone: only what fails by itself ends
                self._prefill_chunk(taking[:1])
            else:
                self._end(taking[0][0], "error", error)
            return
        for (sequence, part), output in zip(taking, outputs, strict=True):
            self._slots.append(part.slot, part.tokens)
            sequence.cached += len(part.tokens)
            if output is not None:
                with self._failing([sequence]):
                    self._executor.keep_output(part.slot, output)
                    self._ready.append(sequence)

    def _choose_first(self) -> None:
        ready, self._ready = sorted(self._ready, key=lambda sequence: sequence.slot or 0), []
        if ready := self._allow(ready):
            with self._failing(ready):
                self._executor.choose_first(_slots_of(ready), self._slots.lengths(), _choice(ready))
                self._take_off(ready)

    def _decode(self, sequences: list[RunningSequence]) -> None:
        if any(sequence.request.allowed for sequence in sequences):
            self._land(leave=0)  # what is allowed depends on the tokens so far
        by_age = [sequence for sequence in self._running.values() if sequence in sequences]
        for sequence in by_age:
            self._make_room(sequence, 1)
        # Some have been set back, or have ended, since pages were short.
        sequences = self._allow([sequence for sequence in sequences if self._goes_on(sequence)])
        if not sequences:
            return
        slots = _slots_of(sequences)
        with self._failing(sequences):
            self._executor.step(slots, self._slots.lengths(), _choice(sequences))
            for slot in slots:
                self._slots.extend(slot, 1)
            if self._executor.overlaps_steps:
                self._slots.speculate(slots)
            self._take_off(sequences)

    def _allow(self, sequences: list[RunningSequence]) -> list[RunningSequence]:
        """Tell the executor which tokens these sequences can have next. Returns those that did not fail with it."""
        masks: dict[int, bytes] = {}
        for sequence in sequences:
            if sequence.request.allowed is not None and sequence.slot is not None:
                with self._failing([sequence]):
                    masks[sequence.slot] = sequence.request.allowed(sequence.so_far)
        if masks:
            self._executor.allow(masks)
        return [sequence for sequence in sequences if sequence.finish is None]

    def _take_off(self, sequences: list[RunningSequence]) -> None:
        """The tokens that were chosen last are those of these sequences."""
        pending = self._executor.pending_tokens(any(sequence.request.keep_logits for sequence in sequences))
        for sequence in sequences:
            sequence.started += 1
        self._flights.append(_Flight(pending, sequences))

    def _land(self, leave: int) -> None:
        """Take the tokens of all flights but the last `leave`."""
        while len(self._flights) > leave:
            self._take(self._flights.popleft())

    def _take(self, flight: _Flight) -> None:
        """The tokens of a flight. Those of sequences that have ended meanwhile are dropped."""
        later = {slot for newer in self._flights for slot in _slots_of(newer.sequences)}
        self._slots.speculate(self._slots.speculated & later)
        with self._failing(flight.sequences):
            tokens, logprobs, logits = flight.pending.wait()
            tops = flight.pending.top_logprobs()
            for sequence in flight.sequences:
                if sequence.finish is not None:
                    continue
                slot = sequence.slot
                assert slot is not None
                token, logprob = tokens[slot], logprobs[slot]
                if not math.isfinite(logprob):
                    self._end(sequence, "error", _not_finite(slot, token, logprob))
                    continue
                self._slots.tell(slot, len(sequence.request.prompt) + len(sequence.tokens), [token])
                sequence.tokens.append(token)
                kept = logits[slot] if logits is not None and sequence.request.keep_logits else None
                top = tops[slot][: sequence.request.sampling.top_logprobs] if slot in tops else ()
                self._tokens.append(NewToken(sequence, token, logprob, kept, top))
                with self._failing([sequence]):
                    if finish := self._finish(sequence, token):
                        self._end(sequence, finish)

    def _finish(self, sequence: RunningSequence, token: int) -> str | None:
        """Why a sequence ends with this token, if it does."""
        assert sequence.slot is not None
        request = sequence.request
        if token in request.stop_tokens or (request.ends is not None and request.ends(sequence.so_far)):
            return "stop"
        if len(sequence.tokens) == request.max_new_tokens:
            return "length"
        full = self._slots.lengths()[sequence.slot] >= self._slots.max_context
        return "context" if full and len(sequence.tokens) == sequence.started else None

    def _end(self, sequence: RunningSequence, finish: str, error: Exception | None = None) -> None:
        """Free the slot of a sequence."""
        sequence.finish, sequence.error = finish, error
        self._ended.append(sequence)
        if sequence in self._ready:
            self._ready.remove(sequence)
        if sequence.slot is not None:
            del self._running[sequence.slot]
            if sequence.slot in self._slots.speculated:
                self._slots.rollback([sequence.slot])
            if self._serving:
                self._slots.clear(sequence.slot)
                self._slots.adapt(sequence.slot, None)

    @contextmanager
    def _failing(self, sequences: list[RunningSequence]) -> Iterator[None]:
        """Where the work inside fails, these sequences end with its error."""
        try:
            yield
        except Exception as error:
            for sequence in sequences:
                if sequence.finish is None:
                    self._end(sequence, "error", error)


def _slots_of(sequences: list[RunningSequence]) -> list[int]:
    return [sequence.slot for sequence in sequences if sequence.slot is not None]


def _choice(sequences: list[RunningSequence]) -> Choice:
    """How the next tokens of these sequences are chosen."""
    return max(sequence.request.choice for sequence in sequences)


def _sampling(sequence: RunningSequence) -> Sampling:
    request = sequence.request
    return Sampling(request.sampling, request.prompt, tuple(sequence.tokens), request.stop_tokens)


def _not_finite(slot: int, token: int, logprob: float) -> RunError:
    return RunError(
        f"slot {slot}: the log probability of token {token} is {logprob}, expected a finite number; a weight of the "
        "artifact is not finite, or its code is wrong"
    )

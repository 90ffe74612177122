"""An executor whose next token is a hash of all tokens of the sequence: any mix-up of sequences gives other tokens."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from executor_without_tensors import ExecutorWithoutTensors, SlotOutput

from gptoss_export import SamplingParams
from gptoss_export.artifact.programs import Prefill, Sizes
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import RunError
from gptoss_export.runtime.executor import (
    ChunkOutput,
    PendingTokens,
    PrefilledChunk,
    PrefilledPart,
    Prompt,
)
from gptoss_export.runtime.packing import pack
from gptoss_export.runtime.runner import Runner

VOCABULARY = 50
STOP = 49
FAILS = 48  # a prompt with this token fails when its chunk is prefilled
NAN = 47  # the log probability after a sequence that holds this token is not a number


def next_token(tokens: Sequence[int], params: SamplingParams) -> int:
    """Greedy sequences do not depend on the seed. 48 and 47 are never chosen."""
    drawn = (params.seed, params.temperature) if params.temperature > 0 else ()
    digest = hashlib.sha256(repr((list(tokens), drawn)).encode()).digest()
    found = int.from_bytes(digest[:4], "little") % (VOCABULARY - 2)
    return STOP if found == NAN else found


def alone(prompt: Sequence[int], count: int, params: SamplingParams, context: int, stops: bool = True) -> list[int]:
    """What a request gives that runs alone."""
    tokens: list[int] = []
    while len(tokens) < count and len(prompt) + len(tokens) <= context:
        tokens.append(next_token([*prompt, *tokens], params))
        if stops and tokens[-1] == STOP:
            break
    return tokens


@dataclass
class Output(SlotOutput):
    """The output after a prompt's last token."""

    tokens: list[int]


@dataclass
class Pending(PendingTokens):
    """Tokens and log probabilities by slot."""

    tokens: dict[int, int]
    logprobs: dict[int, float]

    def wait(self) -> tuple[Mapping[int, int], Mapping[int, float], None]:
        return self.tokens, self.logprobs, None


@dataclass
class HashingExecutor(ExecutorWithoutTensors):
    """`max_batch` slots. `log` has a line for each piece of work. shares: whether prompts share a chunk."""

    sizes: Sizes
    overlaps: bool = False
    shares: bool = False
    log: list[tuple[str, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = self.sizes.max_batch
        self.overlaps_steps = self.overlaps
        self.cached: list[list[int]] = [[] for _ in range(count)]
        self.params = [SamplingParams()] * count
        self.chosen: dict[int, int] = {}
        self.kept: set[int] = set()
        self.latest: list[int] = []
        self.fails: Exception | None = None  # of the next decode step

    def prefill(self, slot: int, start: int, tokens: Sequence[int], every_token: bool) -> Iterator[PrefilledChunk]:
        assert not every_token
        chunk = max(self.sizes.prefill_chunks)
        for at in range(0, len(tokens), chunk):
            piece = list(tokens[at : at + chunk])
            if FAILS in piece:
                raise RunError("this prompt fails")
            self.log.append(("prefill", [slot]))
            self.cached[slot] = self.cached[slot][: start + at] + piece
            last = at + len(piece) == len(tokens)
            outputs: list[ChunkOutput] = [Output(slot, self.cached[slot])] if last else []
            yield PrefilledChunk(len(piece), iter(outputs))

    def prefill_shared(self, prompts: Sequence[Prompt]) -> list[PrefilledPart]:
        if not self.shares:
            return super().prefill_shared(prompts)
        packed = pack(prompts, [Prefill(chunk) for chunk in self.sizes.prefill_chunks])
        if any(FAILS in piece.tokens for piece in packed.pieces):
            raise RunError("this prompt fails")
        self.log.append(("prefill", [piece.slot for piece in packed.pieces]))
        parts = []
        for piece in packed.pieces:
            self.cached[piece.slot] = [*self.cached[piece.slot][: piece.start], *piece.tokens]
            output = Output(piece.slot, self.cached[piece.slot]) if piece.ends else None
            parts.append(PrefilledPart(piece.slot, len(piece.tokens), output))
        return parts

    def set_sampling(self, params: Mapping[int, SamplingParams]) -> None:
        for slot, given in params.items():
            self.params[slot] = given

    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        assert isinstance(output, Output) and output.slot == slot and output.tokens == self.cached[slot]
        self.kept.add(slot)

    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], sampled: bool) -> None:
        assert set(slots) <= self.kept
        self.kept -= set(slots)
        self._choose(slots, lengths, sampled)

    def step(self, slots: Sequence[int], lengths: Sequence[int], sampled: bool) -> None:
        assert list(slots) == sorted(set(slots)) and slots
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        self.log.append(("decode", list(slots)))
        for slot in slots:
            assert lengths[slot] < self.sizes.max_context
            self.cached[slot] = [*self.cached[slot][: lengths[slot]], self.chosen[slot]]
        self._choose(slots, [length + (slot in slots) for slot, length in enumerate(lengths)], sampled)

    def _choose(self, slots: Sequence[int], lengths: Sequence[int], sampled: bool) -> None:
        assert sampled == any(self.params[slot].temperature > 0 for slot in slots)
        self.latest = list(slots)
        for slot in slots:
            assert len(self.cached[slot]) == lengths[slot]
            self.chosen[slot] = next_token(self.cached[slot], self.params[slot])

    def pending_tokens(self, keep_logits: bool) -> PendingTokens:
        logprobs = {slot: float("nan") if NAN in self.cached[slot] else -1.0 for slot in self.latest}
        return Pending({slot: self.chosen[slot] for slot in self.latest}, logprobs)


def hashing_runner(
    slots: int = 3, context: int = 40, chunks: tuple[int, ...] = (4,), overlaps: bool = False, shares: bool = False
) -> tuple[Runner, HashingExecutor]:
    """A runner over such an executor, and the executor."""
    sizes = Sizes((slots,), context, chunks)
    executor = HashingExecutor(sizes, overlaps, shares)
    model = dataclasses.replace(PRESETS["tiny"], vocab_size=VOCABULARY)
    manifest: Any = SimpleNamespace(sizes=sizes, model=model, dtype="float32", stop_tokens=(STOP,))
    return Runner(manifest, Any, executor, {}), executor  # type: ignore[arg-type]

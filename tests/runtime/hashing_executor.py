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
from gptoss_export.model.config import FULL, SLIDING
from gptoss_export.runtime.executor import (
    Choice,
    ChunkOutput,
    Outputs,
    PagedMemory,
    PageLayout,
    Part,
    PendingTokens,
    Prompt,
    Sampling,
    TableEntry,
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


class TokenPages(PagedMemory):
    """Pages that hold tokens in place of keys and values. A page that serves two owners at a time loses one's."""

    def __init__(self, layout: PageLayout) -> None:
        self._layout = layout
        self.table: dict[tuple[str, int, int], int] = {}
        self.contents = [[-1] * layout.page for _ in range(layout.pages)]

    @property
    def layout(self) -> PageLayout:
        return self._layout

    def set_pages(self, entries: Sequence[TableEntry]) -> None:
        self.table |= {(entry.kind, entry.slot, entry.at): entry.page for entry in entries}

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        for source, target in copies:
            self.contents[target] = list(self.contents[source])

    def write(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        for kind in self.kinds:
            for position, token in enumerate(tokens, start):
                page = self.table[kind, slot, position // self.layout.page]
                assert page != 0
                self.contents[page][position % self.layout.page] = token

    def read(self, slot: int, length: int) -> list[int]:
        """The tokens of a sequence. Sliding layers have those that the next token sees."""
        found = [self._at(FULL, slot, position) for position in range(length)]
        if self.layout.window:
            window = range(max(0, length - self.layout.window + 1), length)
            assert [self._at(SLIDING, slot, position) for position in window] == [found[at] for at in window]
        return found

    @property
    def kinds(self) -> list[str]:
        return [FULL, SLIDING] if self.layout.window else [FULL]

    def _at(self, kind: str, slot: int, position: int) -> int:
        page = self.table[kind, slot, position // self.layout.page]
        return self.contents[page][position % self.layout.page]


class TokenLists(TokenPages):
    """A list for each slot: an executor without pages."""

    def __init__(self, slots: int) -> None:
        self.lists: list[list[int]] = [[] for _ in range(slots)]

    def write(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        assert start <= len(self.lists[slot])
        self.lists[slot] = [*self.lists[slot][:start], *tokens]

    def read(self, slot: int, length: int) -> list[int]:
        assert length <= len(self.lists[slot])
        return self.lists[slot][:length]


@dataclass
class HashingExecutor(ExecutorWithoutTensors):
    """`max_batch` slots. `log` has a line for each piece of work. shares: whether prompts share a chunk. layout: of its
    pages, if it has any."""

    sizes: Sizes
    overlaps: bool = False
    shares: bool = False
    layout: PageLayout | None = None
    log: list[tuple[str, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = self.sizes.max_batch
        self.overlaps_steps = self.overlaps
        self.memory = TokenLists(count) if self.layout is None else TokenPages(self.layout)
        self.paged_memory = None if self.layout is None else self.memory
        self.cached = [0] * count  # tokens
        self.params = [SamplingParams()] * count
        self.chosen: dict[int, int] = {}
        self.kept: set[int] = set()
        self.latest: list[int] = []
        self.allowed: dict[int, bytes] = {}
        self.fails: Exception | None = None  # of the next decode step

    def chunk_of(self, prompt: Prompt) -> Part:
        return prompt.first(max(self.sizes.prefill_chunks))

    def prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        assert outputs != Outputs.EVERY
        output = self._prefilled([part])[0]
        return iter([] if output is None else [output])

    def shared_chunk_of(self, prompts: Sequence[Prompt]) -> list[Part]:
        if not self.shares:
            return super().shared_chunk_of(prompts)
        return [piece.part for piece in pack(prompts, self._programs()).pieces]

    def prefill_shared(self, parts: Sequence[Part]) -> list[ChunkOutput | None]:
        if not self.shares:
            return super().prefill_shared(parts)
        assert len(pack(parts, self._programs()).pieces) == len(parts)
        return self._prefilled(parts)

    def _programs(self) -> list[Prefill]:
        return [Prefill(chunk) for chunk in self.sizes.prefill_chunks]

    def _prefilled(self, parts: Sequence[Part]) -> list[ChunkOutput | None]:
        if any(FAILS in part.tokens for part in parts):
            raise RunError("this prompt fails")
        self.log.append(("prefill", [part.slot for part in parts]))
        for part in parts:
            self._write(part.slot, part.start, part.tokens)
        return [Output(part.slot, self.tokens(part.slot)) if part.ends else None for part in parts]

    def tokens(self, slot: int) -> list[int]:
        """What the cache holds of a slot's sequence."""
        return self.memory.read(slot, self.cached[slot])

    def _write(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        self.memory.write(slot, start, tokens)
        self.cached[slot] = start + len(tokens)

    def set_sampling(self, given: Mapping[int, Sampling]) -> None:
        for slot, sampling in given.items():
            self.params[slot] = sampling.params
            self.allowed.pop(slot, None)

    def allow(self, masks: Mapping[int, bytes]) -> None:
        self.allowed |= masks

    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        assert isinstance(output, Output) and output.slot == slot and output.tokens == self.tokens(slot)
        self.kept.add(slot)

    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        assert set(slots) <= self.kept
        self.kept -= set(slots)
        self._choose(slots, lengths, choice)

    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        assert list(slots) == sorted(set(slots)) and slots
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        self.log.append(("decode", list(slots)))
        for slot in slots:
            assert lengths[slot] < self.sizes.max_context
            self._write(slot, lengths[slot], [self.chosen[slot]])
        self._choose(slots, [length + (slot in slots) for slot, length in enumerate(lengths)], choice)

    def _choose(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        drawn = [self.params[slot] for slot in slots if self.params[slot].temperature > 0]
        expected = Choice.LIMITED if any(params.limits for params in drawn) else Choice(bool(drawn))
        assert choice == (Choice.ADJUSTED if self.allowed.keys() & set(slots) else expected)
        self.latest = list(slots)
        for slot in slots:
            assert self.cached[slot] == lengths[slot]
            token = next_token(self.tokens(slot), self.params[slot])
            mask = int.from_bytes(self.allowed.get(slot, b"\xff" * 8), "little")
            while not mask >> token & 1:
                token = (token + 1) % VOCABULARY
            self.chosen[slot] = token

    def pending_tokens(self, keep_logits: bool) -> PendingTokens:
        logprobs = {slot: float("nan") if NAN in self.tokens(slot) else -1.0 for slot in self.latest}
        return Pending({slot: self.chosen[slot] for slot in self.latest}, logprobs)


def hashing_runner(
    slots: int = 3,
    context: int = 40,
    chunks: tuple[int, ...] = (4,),
    overlaps: bool = False,
    shares: bool = False,
    layout: PageLayout | None = None,
) -> tuple[Runner, HashingExecutor]:
    """A runner over such an executor, and the executor."""
    sizes = Sizes((slots,), context, chunks)
    executor = HashingExecutor(sizes, overlaps, shares, layout)
    model = dataclasses.replace(PRESETS["tiny"], vocab_size=VOCABULARY)
    manifest: Any = SimpleNamespace(sizes=sizes, model=model, dtype="float32", device="cpu", stop_tokens=(STOP,))
    return Runner(manifest, Any, executor, {}), executor  # type: ignore[arg-type]


def paged_layout(pages: int, chunk: int = 4, window: int = 6) -> PageLayout:
    """Pages of 4 positions, for both kinds of layers."""
    return PageLayout(page=4, pages=pages, full=True, window=window, chunk=chunk)


def prompt(index: int, length: int) -> list[int]:
    """A prompt of its own for each index."""
    return [(7 * index + 3 * at) % 40 for at in range(length)]

"""Runner: an artifact, loaded. What all runners have in common; what they run is in modules of their own.

    runner = Runner.load("artifacts/tiny")
    print(runner.generate([1, 2, 3], max_new_tokens=20).tokens)

A runner holds `max_batch` slots, each with the KV cache of one sequence. `prefill` and `decode` work on
them directly, with tokens that the caller chooses; `generate` and `stream` drive them with sampled ones.

A call that changes slots ends what an unfinished `stream` or `prefill_logits` was doing: going on with one
raises RunError.

Arrays are torch's where the artifact's target needs torch to run, numpy's where it does not.
"""

from __future__ import annotations

import importlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, RunError, UsageError, raise_all
from ..artifact.manifest import Manifest, check_files, check_hashes, load_manifest, weight_files
from ..progress import Steps
from ..targets import TARGETS, Target
from ..runtime import generation as generating
from .generation import Generation, Token
from .sampling_params import Sampling
from .slots import Slot, check_truncate

# What artifacts hold (Target.runs), by the module and the class that run it.
_RUNNERS = {
    "programs": ("programs", "ProgramRunner"),
    "host_session": ("host_session", "HostSessionRunner"),
    "device_session": ("device_session", "DeviceSessionRunner"),
}


class Runner(ABC):
    """An artifact, loaded. Not thread-safe: one caller at a time."""

    _overlaps = False  # whether a step is launched before the host has the tokens of the one before

    @classmethod
    def load(
        cls, path: str | Path, verify_hashes: bool = True, steps: Steps | None = None, own_process: bool = False
    ) -> Runner:
        """Check the artifact at `path` against its manifest and this machine, and make it ready to run.

        verify_hashes False skips reading every file to compare its sha256; sizes are compared all the same.
        own_process True saves GPU memory by settings of the whole process (footprint.py).
        Raises ArtifactError saying what does not fit.
        """
        folder, steps = Path(path), steps or Steps()
        with steps.step("check files"):
            manifest = load_manifest(folder)
            if manifest.target not in TARGETS:
                raise ArtifactError(f"{folder}: built for target {manifest.target!r}, known are {', '.join(TARGETS)}")
            try:
                target = TARGETS[manifest.target]
            except UsageError as error:
                raise ArtifactError(f"{folder}: {error}") from error
            raise_all(ArtifactError, f"{folder}: cannot run on this machine", target.problems(manifest, folder))
            check_files(manifest, folder)
        module, name = _RUNNERS[target.runs(manifest.device)]
        kind = getattr(importlib.import_module(f".{module}", __package__), name)
        # Code is compared before it is loaded; the weights while they are copied, from the same pages.
        large = weight_files(manifest)
        with ThreadPoolExecutor(1) as background:
            if verify_hashes:
                with steps.step("hash the code"):
                    check_hashes(manifest, folder, manifest.files.keys() - set(large))
                hashing = background.submit(check_hashes, manifest, folder, large)
            try:
                runner = kind._open(manifest, folder, target, steps, own_process)
            finally:  # of two errors, a changed file is the reason for the other
                if verify_hashes:
                    with steps.step("hash the weights, the rest of it"):
                        hashing.result()
        runner.load_seconds = dict(steps.seconds)
        return runner

    @classmethod
    @abstractmethod
    def _open(cls, manifest: Manifest, folder: Path, target: Target, steps: Steps, own_process: bool) -> Runner:
        """Load what the artifact holds, which was checked but for the hashes of the weights."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest, self.folder = manifest, folder
        self.load_seconds: dict[str, float] = {}
        self._slots = [Slot() for _ in range(manifest.max_batch)]
        self._claims = 0
        self._ahead: set[int] = set()  # slots that a stream's next step has extended before its token was taken
        self._ring = 0  # positions that sliding layers keep; 0: all

    # Sequences

    def length(self, slot: int = 0) -> int:
        """Tokens whose keys and values are in the slot's cache."""
        return self._slot(slot).length - (slot in self._ahead)

    def reset(self, slot: int | None = None) -> None:
        """Forget the sequence of a slot, or of all."""
        self._claim()
        for index in range(len(self._slots)) if slot is None else (slot,):
            self._slot(index)
            self._slots[index] = Slot()

    def truncate(self, length: int, slot: int = 0) -> None:
        """Cut a slot's sequence back to its first `length` tokens.

        Raises RunError where sliding layers have overwritten what the next token would have to see: a cut
        reaches back at most one prefill chunk once the ring of window + chunk positions is full.
        """
        self._slot(slot)
        self._claim()
        check_truncate(self._slots[slot], length, self.manifest.model.sliding_window, self._ring)
        self._slots[slot].length = length
        if length == 0:
            self._slots[slot] = Slot()

    @abstractmethod
    def prefill(self, tokens: Sequence[int], slot: int = 0) -> Any:
        """Append tokens to a slot's sequence; returns the logits [V] float32 after the last of them."""

    @abstractmethod
    def prefill_logits(self, tokens: Sequence[int], slot: int = 0) -> Iterator[Any]:
        """As `prefill`, but yields the logits after every token, in blocks [n, V] float32."""

    @abstractmethod
    def score(self, tokens: Sequence[int], slot: int = 0) -> Any:
        """Log probability of each token after the first, given those before it: [n - 1] float32, on CPU.

        Uses the slot, whose sequence is `tokens` afterwards.
        """

    def decode(self, tokens: Sequence[int | None]) -> Any:
        """Append one token to each slot's sequence, None leaving it alone; returns logits [B, V] float32.

        Rows of slots that were left alone mean nothing.
        """
        if len(tokens) != self.manifest.max_batch:
            raise RunError(f"decode: found {len(tokens)} tokens, expected one (or None) for each of "
                           f"{self.manifest.max_batch} slots")  # fmt: skip
        active = [slot for slot, token in enumerate(tokens) if token is not None]
        ids = dict(zip(active, self._ids([tokens[slot] for slot in active]), strict=True))
        for slot in active:
            self._check_room(slot, 1)
        self._claim()
        return self._decode(ids)

    @abstractmethod
    def _decode(self, ids: dict[int, int]) -> Any:
        """`decode` of checked token ids by slot."""

    # Generation

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop_tokens: Sequence[int] | None = None,
        keep_logits: bool = False,
    ) -> Generation:
        """Continue one prompt. stop_tokens None: those of the checkpoint. Takes over slot 0."""
        return self.generate_batch([prompt], max_new_tokens, [sampling], stop_tokens, keep_logits)[0]

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        sampling: Sequence[Sampling] | None = None,
        stop_tokens: Sequence[int] | None = None,
        keep_logits: bool = False,
    ) -> list[Generation]:
        """Continue prompts of any lengths together, each until its own end. Takes over all slots."""
        stops = self._stops(stop_tokens)
        tokens = self._stream(prompts, max_new_tokens, sampling, stops, keep_logits)
        return generating.collect(prompts, tokens, stops, max_new_tokens)

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop_tokens: Sequence[int] | None = None,
    ) -> Iterator[Token]:
        """As `generate`, a token at a time as they are chosen."""
        return self._stream([prompt], max_new_tokens, [sampling], self._stops(stop_tokens), False)

    def _stops(self, stop_tokens: Sequence[int] | None) -> frozenset[int]:
        return frozenset(self.manifest.stop_tokens if stop_tokens is None else stop_tokens)

    def _stream(self, prompts, max_new_tokens, sampling, stops, keep_logits) -> Iterator[Token]:
        generating.check_request(self, prompts, max_new_tokens)
        options = list(sampling) if sampling is not None else [Sampling()] * len(prompts)
        if len(options) != len(prompts):
            raise RunError(f"sampling: {len(options)} options for {len(prompts)} prompts, expected one each")
        for option in options:
            option.check()
        ids = [self._prompt(prompt, slot, fresh=True) for slot, prompt in enumerate(prompts)]
        return generating.stream(self, ids, max_new_tokens, options, stops, keep_logits)

    # What `generating.stream` drives, in this order; not for other callers

    def _begin(self, options: Sequence[Sampling]) -> int:
        """Empty all slots for a stream; the number tells later whether it still owns them."""
        self.reset()
        self._set(options)
        return self._claims

    def _check_claim(self, claim: int) -> None:
        if claim != self._claims:
            raise RunError("another call used this runner meanwhile; finish a stream before the next call")

    @abstractmethod
    def _set(self, options: Sequence[Sampling]) -> None:
        """How the first slots draw their tokens from now on."""

    @abstractmethod
    def _start(self, slot: int, prompt: Sequence[int]) -> None:
        """Prefill a prompt and keep the logits that its first token is chosen from."""

    @abstractmethod
    def _choose(self, slots: Sequence[int], sampled: bool) -> None:
        """Choose the first token of each slot from the logits that `start` kept."""

    @abstractmethod
    def _next(self, slots: Sequence[int], sampled: bool) -> None:
        """Decode the chosen tokens of `slots` and choose the next ones."""

    @abstractmethod
    def _reading(self, keep_logits: bool) -> Any:
        """The tokens chosen last and their log probabilities, by slot, and what they were chosen from."""

    def _take_back(self, slots: Iterable[int]) -> None:
        """Forget the last token of slots: a step that was started before it was known to be one too many."""
        for slot in slots:
            self._slots[slot].length -= 1
        self._ahead = self._ahead - set(slots)

    # Checks and bookkeeping

    @abstractmethod
    def _cache_bytes(self) -> int:
        """Memory of the KV caches."""

    def _claim(self) -> int:
        self._claims += 1
        self._take_back(self._ahead)
        return self._claims

    def _slot(self, slot: int) -> Slot:
        if not 0 <= slot < len(self._slots):
            raise RunError(f"slot {slot}: expected 0 to {len(self._slots) - 1} (--max-batch of the build)")
        return self._slots[slot]

    def _ids(self, tokens: Sequence[int]) -> list[int]:
        """Token ids as plain integers. Raises RunError where one is none of the vocabulary's."""
        size = self.manifest.model.vocab_size
        try:
            ids = [operator.index(token) for token in tokens]
        except TypeError as error:
            raise RunError(f"tokens: expected whole numbers ({error})") from None
        wrong = [token for token in ids if not 0 <= token < size]
        if wrong:
            raise RunError(f"token {wrong[0]}: expected ids of 0 to {size - 1}, the model's vocabulary")
        return ids

    def _prompt(self, tokens: Sequence[int], slot: int, fresh: bool = False) -> list[int]:
        """Token ids that fit behind a slot's sequence, or (`fresh`) in place of it."""
        ids = self._ids(tokens)
        if not ids:
            raise RunError("no tokens, expected one or more")
        self._check_room(slot, len(ids), fresh)
        return ids

    def _check_room(self, slot: int, count: int, fresh: bool = False) -> None:
        held = self.length(slot)
        length = 0 if fresh else held
        if length + count > self.manifest.max_context:
            raise RunError(
                f"slot {slot}: {length} tokens and {count} more exceed the context of "
                f"{self.manifest.max_context} (--max-context of the build)"
            )

    def _chunk(self, remaining: int) -> int:
        """The smallest chunk that takes all that remains, or the largest there is."""
        chunks = sorted(self.manifest.prefill_chunks)
        return next((chunk for chunk in chunks if chunk >= remaining), chunks[-1])

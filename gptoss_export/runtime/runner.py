"""Runner: a loaded artifact.

    runner = gptoss_export.load("artifacts/20b")
    print(runner.generate([1, 2, 3], max_new_tokens=20).tokens)

A runner has `max_batch` slots, each with the KV cache of one sequence. `prefill` and `decode` work on slots directly,
with tokens that the caller chooses. `generate` and `stream` choose the tokens themselves.

An artifact with adapter slots takes LoRA adapters: `load_adapter` gives one a name, by which generations and `reset`
choose it.

A call that changes slots ends an unfinished `stream` or `prefill_logits`: going on with one raises RunError.

Arrays are torch tensors where the process had imported torch when the artifact was loaded, or where its target needs
torch. Otherwise they are arrays that numpy.asarray and torch.from_dlpack take (`without_torch/array.py`), or arrays of
numpy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..artifact.manifest import Manifest
from ..errors import RunError
from .arguments import integer, sequence, token_ids
from .checked_request import checked_requests
from .executor import ChunkOutput, Executor
from .generation import Generation, Token, collect, stream
from .loaded_adapters import LoadedAdapters
from .page_tables import PageTables
from .prefill import prefill
from .running_sequence import Request
from .sampling_params import SamplingParams
from .slots import Slots

Item = TypeVar("Item")
_BUSY = "another thread is in a call of this runner; let one thread at a time use it"


class AloneIterator(Iterator[Item], Generic[Item]):
    """The items of a generator that was started by a call of a runner. Each one is made alone.

    Any thread may take the next one, close it, or be the one in which it is collected as garbage.
    """

    def __init__(self, items: Generator[Item, None, Any], alone: Callable[[], AbstractContextManager[None]]) -> None:
        self._items, self._alone = items, alone

    def __next__(self) -> Item:
        with self._alone():
            return next(self._items)

    def close(self) -> None:
        """Want no more items. Raises RunError while another thread makes one."""
        try:
            self._items.close()
        except ValueError:  # Python's for a generator that runs
            raise RunError(_BUSY) from None


class Runner:
    """An artifact, loaded. It serves one thread at a time: a call raises RunError while another thread is in one.

    manifest, folder  what was loaded
    executor          what computes, for tools such as `bench`
    slots             what the slots hold, for the engine
    loaded_adapters   by their names, for the engine
    load_seconds      how long each stage of loading took
    """

    def __init__(self, manifest: Manifest, folder: Path, executor: Executor, load_seconds: Mapping[str, float]) -> None:
        self.manifest, self.folder, self.executor = manifest, folder, executor
        self.load_seconds = dict(load_seconds)
        sizes, memory = manifest.sizes, executor.paged_memory
        pages = None if memory is None else PageTables(sizes.max_batch, memory)
        self.slots = Slots(sizes.max_batch, sizes.max_context, pages, executor.adapter_memory)
        self.loaded_adapters = LoadedAdapters(manifest, executor.adapter_memory, self.slots)
        self._lock = threading.Lock()
        self._owner = ""

    # Sequences

    def length(self, slot: int = 0) -> int:
        """Tokens whose keys and values are in the slot's cache."""
        return self.slots.length(integer("slot", slot))

    def reset(self, slot: int | None = None, adapter: str | None = None) -> None:
        """Forget the sequence of a slot, or of all slots. The next one is computed with `adapter`; None: with none."""
        cleared = range(len(self.slots)) if slot is None else (integer("slot", slot),)
        chosen = self.loaded_adapters.find(adapter)
        with self._alone():
            self.slots.begin_call()
            for index in cleared:
                self.slots.clear(index)
                self.slots.adapt(index, chosen)

    def truncate(self, length: int, slot: int = 0) -> None:
        """Shorten a slot's sequence to its first `length` tokens.

        Raises RunError where what the next token has to see is gone: sliding layers give pages back that leave the
        window, and another sequence may have taken them."""
        length, slot = integer("length", length), integer("slot", slot)
        with self._alone():
            self.slots.length(slot)
            self.slots.begin_call()
            self.slots.truncate(slot, length)

    def fork(self, source: int, target: int) -> None:
        """Let slot `target` hold the sequence of slot `source`, whatever it held before.

        They share the memory of what they have in common: nothing is copied but a page that one of them changes. Raises
        RunError where the artifact's cache has no pages (ONNX)."""
        source, target = integer("source", source), integer("target", target)
        with self._alone():
            self.slots.length(source)
            self.slots.length(target)
            self.slots.begin_call()
            self.slots.fork(source, target)

    def prefill(self, tokens: Sequence[int], slot: int = 0) -> Any:
        """Append tokens to a slot's sequence; returns the logits [V] float32 after the last of them."""
        ids, slot = self._ids(tokens), integer("slot", slot)
        with self._alone():
            self._check_room(ids, slot)
            self.slots.begin_call()
            *_, last = prefill(self.executor, self.slots, slot, ids, every_token=False)
            return last.logits[0]

    def prefill_logits(self, tokens: Sequence[int], slot: int = 0) -> Iterator[Any]:
        """As `prefill`, but yields the logits after every token, in blocks [n, V] float32."""
        ids, slot = self._ids(tokens), integer("slot", slot)
        with self._alone():
            self._check_room(ids, slot)
            blocks = (output.logits for output in self._outputs(ids, slot, self.slots.begin_call()))
        return AloneIterator(blocks, self._alone)

    def score(self, tokens: Sequence[int], slot: int = 0) -> Any:
        """Log probability of each token after the first, given those before it: [n - 1] float32, on the host.

        Uses the slot, whose sequence is `tokens` afterwards.
        """
        ids, slot = self._ids(tokens), integer("slot", slot)
        if len(ids) < 2:
            raise RunError(f"score: found {len(ids)} tokens, expected 2 or more")
        with self._alone():
            self._check_room(ids, slot, fresh=True)
            epoch = self.slots.begin_call()
            self.slots.clear(slot)
            following, row, scores = [*ids[1:], 0], 0, []
            for output in self._outputs(ids, slot, epoch):
                count = len(output.logits)
                scores.append(self.executor.logprobs(output, following[row : row + count]))
                row += count
            return self.executor.joined([score() for score in scores])[:-1]

    def decode(self, tokens: Sequence[int | None]) -> Any:
        """Append one token to each slot's sequence, None leaves it alone; returns logits [B, V] float32.

        Rows of slots that were left alone mean nothing.
        """
        listed = sequence("tokens", tokens, "token ids (or None)")
        if len(listed) != len(self.slots):
            raise RunError(
                f"decode: found {len(listed)} tokens, expected one (or None) for each of {len(self.slots)} slots"
            )
        given = {slot: token for slot, token in enumerate(listed) if token is not None}
        ids = dict(zip(given, self._ids(list(given.values())), strict=True))
        with self._alone():
            for slot in ids:
                self.slots.check_room(slot, 1)
            self.slots.begin_call()
            for slot in ids:
                self.slots.reserve(slot, 1)
            logits = self.executor.decode(ids, self.slots.lengths())
            for slot, token in ids.items():
                self.slots.append(slot, [token])
            return logits

    # Adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters."""
        return self.loaded_adapters.names

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Load the LoRA adapter that PEFT has saved in a folder, in place of one of that name. Sequences that run are
        not disturbed.

        Raises CheckpointError with all that is wrong with it, UsageError where the artifact has no free adapter slot,
        RunError where a sequence uses the one of that name.
        """
        with self._between_calls():
            self.loaded_adapters.load(name, Path(folder))

    def unload_adapter(self, name: str) -> None:
        """Free the adapter slot of a loaded adapter. Raises UsageError where there is none of that name, RunError where
        a sequence uses it."""
        with self._between_calls():
            self.loaded_adapters.unload(name)

    # Generation

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        sampling: SamplingParams | None = None,
        stop_tokens: Sequence[int] | None = None,
        keep_logits: bool = False,
        ends: Callable[[Sequence[int]], bool] | None = None,
        adapter: str | None = None,
    ) -> Generation:
        """Continue one prompt, in slot 0.

        prompt          ids of 0 to vocab_size - 1, at least one
        max_new_tokens  it ends after so many tokens, if no stop token and no full context ends it before
        sampling        None: the most likely tokens
        stop_tokens     it ends after one of these. None: the checkpoint's
        keep_logits     whether the result has the logits that each token was chosen from, [tokens, vocab_size]
        ends            gets the tokens of the answer so far, and says whether it ends there
        adapter         name of a loaded adapter. None: the model alone

        Raises RunError for tokens outside of the vocabulary and for a prompt that is longer than the context, and
        UsageError for an adapter that is not loaded.
        """
        (request,) = self._requests(
            [prompt], max_new_tokens, None if sampling is None else [sampling], stop_tokens, keep_logits, [adapter]
        )
        requests = [replace(request, ends=ends)]
        with self._alone():
            (result,) = collect(requests, stream(self.executor, self.slots, requests))
        return result

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        sampling: Sequence[SamplingParams] | None = None,
        stop_tokens: Sequence[int] | None = None,
        keep_logits: bool = False,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Generation]:
        """Continue prompts of any lengths together, each until its own end. Takes over all slots.

        The arguments are those of `generate`, with a prompt, sampling parameters and an adapter (or None) for each
        sequence. Raises RunError for more prompts than slots, too.
        """
        requests = self._requests(prompts, max_new_tokens, sampling, stop_tokens, keep_logits, adapters)
        with self._alone():
            return collect(requests, stream(self.executor, self.slots, requests))

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        sampling: SamplingParams | None = None,
        stop_tokens: Sequence[int] | None = None,
        ends: Callable[[Sequence[int]], bool] | None = None,
        adapter: str | None = None,
    ) -> Iterator[Token]:
        """As `generate`, one token at a time as they are chosen. Raises RunError before the first token."""
        given = None if sampling is None else [sampling]
        (request,) = self._requests([prompt], max_new_tokens, given, stop_tokens, False, [adapter])
        requests = [replace(request, ends=ends)]
        return AloneIterator(stream(self.executor, self.slots, requests), self._alone)

    # Ownership

    def lend(self, owner: str) -> None:
        """Give the slots away until `take_back`: calls that need them raise RunError with the text `owner`. Raises
        RunError where another thread is in a call, or where they are lent already."""
        self._take()
        self._owner = owner

    def take_back(self) -> None:
        """End what `lend` began."""
        self._owner = ""
        self._lock.release()

    # Checks

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raises RunError, without waiting, while another thread is in a call: their sequences would be mixed up."""
        self._take()
        try:
            yield
        finally:
            self._lock.release()

    def _between_calls(self) -> AbstractContextManager[None]:
        """As `_alone`. An engine that the slots are lent to goes on: its requests say which adapters they use."""
        return nullcontext() if self._owner else self._alone()

    def _take(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RunError(self._owner or _BUSY)

    def _requests(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sequence[SamplingParams] | None,
        stop_tokens: Sequence[int] | None,
        keep_logits: bool,
        adapters: Sequence[str | None] | None,
    ) -> list[Request]:
        listed = sequence("prompts", prompts, "prompts")
        if not 1 <= len(listed) <= len(self.slots):
            raise RunError(
                f"{len(listed)} prompts: expected 1 to {len(self.slots)} (--max-batch of the build); "
                "an Engine takes any number"
            )
        found = None if adapters is None else self.loaded_adapters.find_all(adapters)
        return checked_requests(
            self.manifest, self.slots, listed, max_new_tokens, sampling, stop_tokens, keep_logits, found
        )

    def _outputs(self, ids: Sequence[int], slot: int, epoch: int) -> Iterator[ChunkOutput]:
        """Prefill, with the output after every token, in blocks. Checks before each block that the slots are still
        ours."""
        self.slots.check_epoch(epoch)
        for output in prefill(self.executor, self.slots, slot, ids, every_token=True):
            yield output
            self.slots.check_epoch(epoch)

    def _ids(self, tokens: Sequence[int], name: str = "token") -> list[int]:
        return token_ids(name, tokens, self.manifest.model.vocab_size)

    def _check_room(self, ids: Sequence[int], slot: int, fresh: bool = False) -> None:
        """Raise RunError for no ids, and for ids that do not fit behind a slot's sequence, or (`fresh`) in place of
        it."""
        if not ids:
            raise RunError("no tokens, expected one or more")
        self.slots.check_room(slot, len(ids), fresh)

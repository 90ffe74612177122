"""Runner: loads an artifact, allocates every buffer once, and runs it.

    runner = Runner.load("artifacts/tiny")
    print(runner.generate([1, 2, 3], max_new_tokens=20).tokens)

A runner holds `max_batch` slots, each with the KV cache of one sequence. `prefill` and `decode` work on
them directly, with tokens that the caller chooses; `generate` and `stream` drive them with sampled ones.

A call that changes slots ends what an unfinished `stream` or `prefill_logits` was doing: going on with one
raises RunError.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from ..config import SLIDING
from ..errors import ArtifactError, RunError, raise_all
from ..manifest import Manifest, check_files, check_hashes, load_manifest, weight_files
from ..progress import Steps
from ..targets import TARGETS, Callables
from . import generate as generating
from .footprint import spare_process
from .generate import Generation, Token
from .sampler import Sampling, SamplingBuffers, Scores, choose, logprob
from .slots import Slot, check_truncate
from .step import DecodeStep, Reading
from .weights import load_weights


class Runner:
    """An artifact, loaded. Not thread-safe: one caller at a time."""

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
            target = TARGETS.get(manifest.target)
            if target is None:
                raise ArtifactError(f"{folder}: built for target {manifest.target!r}, known are {', '.join(TARGETS)}")
            raise_all(ArtifactError, f"{folder}: cannot run on this machine", target.problems(manifest, folder))
            check_files(manifest, folder)
        device = torch.device(manifest.device)
        if device.type == "cuda":
            if own_process:
                spare_process()
            device = torch.device("cuda", torch.cuda.current_device())
        # Code is compared before it is loaded; the weights while they are copied, from the same pages.
        large = weight_files(manifest)
        with ThreadPoolExecutor(1) as background:
            if verify_hashes:
                with steps.step("hash the code"):
                    check_hashes(manifest, folder, manifest.files.keys() - set(large))
                hashing = background.submit(check_hashes, manifest, folder, large)
            try:
                with steps.step("load weights"):
                    weights = load_weights(manifest, folder, device)
            finally:  # of two errors, a changed file is the reason for the other
                if verify_hashes:
                    with steps.step("hash the weights, the rest of it"):
                        hashing.result()
        with steps.step("load programs"):
            programs = target.load(manifest, folder, device)
        with steps.step("allocate and warm up"):
            runner = cls(manifest, folder, device, weights, programs)
        runner.load_seconds = dict(steps.seconds)
        return runner

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        device: torch.device,
        weights: dict[str, torch.Tensor],
        programs: Callables,
    ) -> None:
        self.manifest, self.folder, self.device = manifest, folder, device
        self.load_seconds: dict[str, float] = {}
        self._programs = programs
        self._buffers = self._bind(weights)
        self._slots = [Slot() for _ in range(manifest.max_batch)]
        self._claims = 0
        self._options = SamplingBuffers(manifest.max_batch, device)
        decode = self._buffers["decode"]
        self._tokens, self._positions, slots = decode[:3]
        self._positions.fill_(-1)
        slots.copy_(torch.arange(manifest.max_batch))
        self._moving = torch.zeros_like(self._positions)
        self._step = DecodeStep(
            partial(programs["decode"], decode), self._tokens, self._positions, self._moving, self._options
        )
        # What the next choice of each slot is made from, and what the last one was worth.
        self._scores = self._prompt_scores = Scores(
            *(torch.zeros(item.shape, dtype=getattr(torch, item.dtype), device=device)
              for item in manifest.programs["decode"].outputs)
        )  # fmt: skip
        self._logprobs = torch.zeros(manifest.max_batch, device=device)
        self._placed: dict[int, int] | None = None  # where the device has them; None: not known
        self._ahead: set[int] = set()  # slots that a stream's next step has extended before its token was taken
        sliding = [i for i, kind in enumerate(manifest.model.layer_types) if kind == SLIDING]
        self._ring = self._cache_rows(sliding[0]) if sliding else 0
        with torch.inference_mode():
            if device.type == "cuda":
                self._step.capture()

    def _cache_rows(self, layer: int) -> int:
        inputs = self.manifest.programs["decode"].inputs
        return next(item.shape[2] - 1 for item in inputs if item.name == f"k_cache.{layer}")

    def _bind(self, weights: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """The input list of every program: own data buffers, the shared caches, the shared weights."""
        shared = dict(weights)
        bound: dict[str, list[torch.Tensor]] = {}
        problems = []
        for program, spec in self.manifest.programs.items():
            bound[program] = []
            for item in spec.inputs:
                dtype = getattr(torch, item.dtype)
                if item.role == "weight" and item.name not in shared:
                    problems.append(f"{program}: weight {item.name} is not in the manifest")
                    continue
                if item.role == "data" or item.name not in shared:
                    tensor = torch.zeros(item.shape, dtype=dtype, device=self.device)
                    if item.role == "cache":
                        shared[item.name] = tensor
                else:
                    tensor = shared[item.name]
                if tuple(tensor.shape) != item.shape or tensor.dtype != dtype or not tensor.is_contiguous():
                    problems.append(
                        f"{program}: {item.name} is {tensor.dtype} {list(tensor.shape)}, expected contiguous "
                        f"{dtype} {list(item.shape)}"
                    )
                bound[program].append(tensor)
        raise_all(ArtifactError, f"{self.folder}: manifest contradicts itself", problems)
        return bound

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

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], slot: int = 0) -> torch.Tensor:
        """Append tokens to a slot's sequence; returns the logits [V] float32 after the last of them."""
        ids = self._prompt(tokens, slot)
        self._claim()
        return self._prefill(ids, slot).logits[0]

    def prefill_logits(self, tokens: Sequence[int], slot: int = 0) -> Iterator[torch.Tensor]:
        """As `prefill`, but yields the logits after every token, in blocks [n, V] float32."""
        blocks = self._scores_of(self._prompt(tokens, slot), slot, self._claim())
        return (scores.logits for scores in blocks)

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], slot: int = 0) -> torch.Tensor:
        """Log probability of each token after the first, given those before it: [n - 1] float32, on CPU.

        Uses the slot, whose sequence is `tokens` afterwards.
        """
        if len(tokens) < 2:
            raise RunError(f"score: found {len(tokens)} tokens, expected 2 or more")
        ids = self._prompt(tokens, slot, fresh=True)
        self.reset(slot)
        following = torch.tensor([*ids[1:], 0], device=self.device)
        scores, row = [], 0
        for rows in self._scores_of(ids, slot, self._claim()):
            scores.append(logprob(rows, following[row : row + rows.top.size(0)]))
            row += rows.top.size(0)
        return torch.cat(scores)[:-1].cpu()

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int | None]) -> torch.Tensor:
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
        self._tokens.copy_(torch.tensor([ids.get(slot, 0) for slot in range(len(tokens))]))
        self._advance(active, sampled=False)
        return self._step.scores.logits.clone()

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
        self._options.set(options)
        return self._claims

    def _check_claim(self, claim: int) -> None:
        if claim != self._claims:
            raise RunError("another call used this runner meanwhile; finish a stream before the next call")

    @torch.inference_mode()
    def _start(self, slot: int, prompt: Sequence[int]) -> None:
        """Prefill a prompt and keep the logits that its first token is chosen from."""
        for kept, row in zip(self._prompt_scores, self._prefill(prompt, slot), strict=True):
            kept[slot].copy_(row[0])
        self._scores = self._prompt_scores

    @torch.inference_mode()
    def _choose(self, slots: Sequence[int], sampled: bool) -> None:
        """Choose the first token of each slot from the logits that `start` kept."""
        self._place(slots)
        self._positions.sub_((self._positions >= 0).long())  # of the token before, as in a step
        tokens, self._logprobs = choose(self._scores, self._positions, self._options, sampled)
        self._tokens.copy_(tokens)
        self._placed = None

    @torch.inference_mode()
    def _next(self, slots: Sequence[int], sampled: bool) -> None:
        """Decode the chosen tokens of `slots` and choose the next ones."""
        self._advance(slots, sampled)
        self._scores, self._logprobs = self._step.scores, self._step.logprobs

    def _reading(self, keep_logits: bool) -> Reading:
        """The tokens chosen last and their log probabilities, by slot, and what they were chosen from."""
        return Reading(self._tokens, self._logprobs, self._scores.logits if keep_logits else None)

    def _take_back(self, slots: Iterable[int]) -> None:
        """Forget the last token of slots: a step that was started before it was known to be one too many."""
        for slot in slots:
            self._slots[slot].length -= 1
        self._ahead = self._ahead - set(slots)

    # Programs

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

    def _place(self, slots: Sequence[int]) -> None:
        """Positions of the next token of `slots`; all others are idle."""
        placed = {slot: self._slots[slot].length for slot in slots}
        if placed != self._placed:
            positions = torch.tensor([placed.get(slot, -1) for slot in range(len(self._slots))])
            self._positions.copy_(positions)
            self._moving.copy_(positions >= 0)
        self._placed = {slot: length + 1 for slot, length in placed.items()}  # the step moves on by itself

    def _advance(self, slots: Sequence[int], sampled: bool) -> None:
        self._place(slots)
        self._step.run(sampled)
        for slot in slots:
            self._slots[slot].extend(1)

    def _prefill(self, ids: Sequence[int], slot: int) -> Scores:
        for hidden in self._hidden(ids, slot):
            last = hidden[-1:].clone()  # a view would keep the chunk beside the next one's intermediates
            del hidden
        return self._unembed(last)

    @torch.inference_mode()
    def _scores_of(self, ids: Sequence[int], slot: int, claim: int) -> Iterator[Scores]:
        self._check_claim(claim)
        for hidden in self._hidden(ids, slot):
            for rows in hidden.split(self._score_rows):
                yield self._unembed(rows)
                self._check_claim(claim)

    def _hidden(self, tokens: Sequence[int], slot: int) -> Iterator[torch.Tensor]:
        """Prefill in chunks: the hidden states [n, H] float32 of each chunk's tokens."""
        done = 0
        while done < len(tokens):
            chunk = self._chunk(len(tokens) - done)
            piece = tokens[done : done + chunk]
            start, padding = self._slots[slot].length, chunk - len(piece)
            name = f"prefill_{chunk}"
            ids, positions, place = self._buffers[name][:3]
            ids.copy_(torch.tensor([*piece, *([0] * padding)]))
            positions.copy_(torch.tensor([*range(start, start + len(piece)), *([-1] * padding)]))
            place.fill_(slot)
            (hidden,) = self._programs[name](self._buffers[name])
            self._slots[slot].extend(len(piece))
            yield hidden[: len(piece)]
            del hidden
            done += len(piece)

    def _chunk(self, remaining: int) -> int:
        """The smallest chunk that takes all that remains, or the largest there is."""
        chunks = sorted(self.manifest.prefill_chunks)
        return next((chunk for chunk in chunks if chunk >= remaining), chunks[-1])

    @property
    def _score_rows(self) -> int:
        return max(spec.inputs[0].shape[0] for name, spec in self.manifest.programs.items() if name.startswith("unembed_"))

    def _unembed(self, hidden: torch.Tensor) -> Scores:
        """Scores of up to `_score_rows` hidden states."""
        count = hidden.size(0)
        name = "unembed_1" if count == 1 else f"unembed_{self._score_rows}"
        self._buffers[name][0][:count].copy_(hidden)
        return Scores(*(output[:count] for output in self._programs[name](self._buffers[name])))

"""Runs compiled programs of static shape: binds every buffer once, and calls them (targets that compile programs)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from ..config import SLIDING
from ..errors import ArtifactError, RunError, raise_all
from ..manifest import Manifest
from ..progress import Steps
from ..targets import Callables, Target
from .footprint import spare_process
from .runner import Runner
from .sampler import SamplingBuffers, Scores, choose, logprob
from .sampling import Sampling
from .step import DecodeStep, Reading
from .weights import load_weights


class ProgramRunner(Runner):
    """A Runner over the programs decode, prefill_<C> and unembed_<R> of an artifact."""

    @classmethod
    def _open(cls, manifest: Manifest, folder: Path, target: Target, steps: Steps, own_process: bool) -> ProgramRunner:
        if not manifest.programs:
            raise ArtifactError(f"{folder}: the manifest names no programs; build the artifact again")
        device = torch.device(manifest.device)
        if device.type == "cuda":
            if own_process:
                spare_process()
            device = torch.device("cuda", torch.cuda.current_device())
        with steps.step("load weights"):
            weights = load_weights(manifest, folder, device)
        with steps.step("load programs"):
            programs = target.load(manifest, folder, device)
        with steps.step("allocate and warm up"):
            return cls(manifest, folder, device, weights, programs)

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        device: torch.device,
        weights: dict[str, torch.Tensor],
        programs: Callables,
    ) -> None:
        super().__init__(manifest, folder)
        self._device = device
        self._overlaps = device.type == "cuda"
        self._programs = programs
        self._buffers = self._bind(weights)
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
        sliding = [i for i, kind in enumerate(manifest.model.layer_types) if kind == SLIDING]
        self._ring = self._cache_rows(sliding[0]) if sliding else 0
        with torch.inference_mode():
            if device.type == "cuda":
                self._step.capture()

    def _cache_bytes(self) -> int:
        inputs = zip(self.manifest.programs["decode"].inputs, self._buffers["decode"], strict=True)
        return sum(tensor.nbytes for item, tensor in inputs if item.role == "cache")

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
                    tensor = torch.zeros(item.shape, dtype=dtype, device=self._device)
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

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], slot: int = 0) -> torch.Tensor:
        ids = self._prompt(tokens, slot)
        self._claim()
        return self._prefill(ids, slot).logits[0]

    def prefill_logits(self, tokens: Sequence[int], slot: int = 0) -> Iterator[torch.Tensor]:
        blocks = self._scores_of(self._prompt(tokens, slot), slot, self._claim())
        return (scores.logits for scores in blocks)

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], slot: int = 0) -> torch.Tensor:
        if len(tokens) < 2:
            raise RunError(f"score: found {len(tokens)} tokens, expected 2 or more")
        ids = self._prompt(tokens, slot, fresh=True)
        self.reset(slot)
        following = torch.tensor([*ids[1:], 0], device=self._device)
        scores, row = [], 0
        for rows in self._scores_of(ids, slot, self._claim()):
            scores.append(logprob(rows, following[row : row + rows.top.size(0)]))
            row += rows.top.size(0)
        return torch.cat(scores)[:-1].cpu()

    @torch.inference_mode()
    def _decode(self, ids: dict[int, int]) -> torch.Tensor:
        self._tokens.copy_(torch.tensor([ids.get(slot, 0) for slot in range(len(self._slots))]))
        self._advance(list(ids), sampled=False)
        return self._step.scores.logits.clone()

    def _set(self, options: Sequence[Sampling]) -> None:
        self._options.set(options)

    @torch.inference_mode()
    def _start(self, slot: int, prompt: Sequence[int]) -> None:
        for kept, row in zip(self._prompt_scores, self._prefill(prompt, slot), strict=True):
            kept[slot].copy_(row[0])
        self._scores = self._prompt_scores

    @torch.inference_mode()
    def _choose(self, slots: Sequence[int], sampled: bool) -> None:
        self._place(slots)
        self._positions.sub_((self._positions >= 0).long())  # of the token before, as in a step
        tokens, self._logprobs = choose(self._scores, self._positions, self._options, sampled)
        self._tokens.copy_(tokens)
        self._placed = None

    @torch.inference_mode()
    def _next(self, slots: Sequence[int], sampled: bool) -> None:
        self._advance(slots, sampled)
        self._scores, self._logprobs = self._step.scores, self._step.logprobs

    def _reading(self, keep_logits: bool) -> Reading:
        return Reading(self._tokens, self._logprobs, self._scores.logits if keep_logits else None)

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

    @property
    def _score_rows(self) -> int:
        return max(spec.inputs[0].shape[0] for name, spec in self.manifest.programs.items() if name.startswith("unembed_"))

    def _unembed(self, hidden: torch.Tensor) -> Scores:
        """Scores of up to `_score_rows` hidden states."""
        count = hidden.size(0)
        name = "unembed_1" if count == 1 else f"unembed_{self._score_rows}"
        self._buffers[name][0][:count].copy_(hidden)
        return Scores(*(output[:count] for output in self._programs[name](self._buffers[name])))

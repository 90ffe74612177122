"""The cases that `verify` runs: which prompts, and at which positions their logits are compared.

One random sequence serves all cases: every prompt is a beginning of it. An artifact prefills a prompt and then
decodes the next DECODED tokens of the sequence, one at a time, whatever its logits say (teacher forcing).

Compared are the logits after the last LAST_ROWS prompt tokens and after each decoded token. The longest prompt is
compared at positions all over it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..artifact.manifest import Manifest
from ..errors import UsageError, raise_all
from ..model.kv_cache import PAGE
from ..runtime.runner import Runner

DECODED = 8  # decode steps after each prefill
LAST_ROWS = 24  # prompt positions that are compared, the last ones
MAX_LOGITS = 2**28  # logits that are compared over the longest prompt, at most
COMPARED = 8  # prompts of a batch that are compared, at most


@dataclass(frozen=True)
class Case:
    """Prompts that run together, one in each slot, given by their lengths.

    sampled  True for the longest prompt: positions all over it are compared, not only its last ones
    """

    label: str
    prompts: tuple[int, ...]
    sampled: bool = False

    @property
    def longest(self) -> int:
        return max(self.prompts)

    @property
    def compared(self) -> tuple[int, ...]:
        """The slots whose logits are compared: the first, the last, and others between them."""
        count = len(self.prompts)
        return tuple(_spread(count, min(count, COMPARED)))

    def prompt_rows(self, length: int, vocabulary: int) -> set[int]:
        """The positions of a prompt of `length` tokens whose logits are compared."""
        last = set(range(max(0, length - LAST_ROWS), length))
        if not self.sampled:
            return last
        count = max(LAST_ROWS, min(length, MAX_LOGITS // vocabulary))
        return last | {index * length // count for index in range(count)}


def make_cases(manifests: Sequence[Manifest], lengths: list[int] | None) -> list[Case]:
    """A case for each length, and one for each width of a step, that all of these artifacts can run.

    lengths None: lengths around every border of the artifacts. Raises UsageError for a length that does not fit.
    """
    limit = min(manifest.sizes.max_context for manifest in manifests) - DECODED
    chosen = _check_lengths(lengths or default_lengths(manifests, limit) or [1], limit)
    slots = min(manifest.sizes.max_batch for manifest in manifests)
    widths = {slots} | {width for manifest in manifests for width in manifest.sizes.widths if width < slots}
    single = [Case(str(length), (length,), sampled=length == chosen[-1]) for length in chosen]
    return [*single, *(_batch_case(width, chosen, limit) for width in sorted(widths - {1}))]


def default_lengths(manifests: Iterable[Manifest], limit: int) -> list[int]:
    """Prompt lengths around every border that one of these artifacts has, up to `limit`, in ascending order.

    The borders are what implementations get wrong: the sliding window, each prefill chunk, alone and behind the
    largest one, the first page, the first pages that sliding layers give back behind a whole chunk, and the position
    from which YaRN extrapolates.
    """
    lengths = {1}
    for manifest in manifests:
        window, chunk = manifest.model.sliding_window, max(manifest.sizes.prefill_chunks)
        yarn = manifest.model.rope.original_max_position_embeddings
        borders = {window, chunk, window + chunk, PAGE, yarn}
        for smaller in set(manifest.sizes.prefill_chunks) - {chunk}:
            borders |= {smaller, chunk + smaller}
        lengths |= {border + step for border in borders for step in (-1, 0, 1)}
    return sorted(length for length in lengths if 1 <= length <= limit)


def run_case(
    runner: Runner, case: Case, tokens: Sequence[int], adapter: str | None = None
) -> tuple[list[int], torch.Tensor]:
    """Run the prompts of a case, which are beginnings of `tokens`, with a loaded adapter or none.

    Returns the compared positions [n] of all prompts, and the artifact's logits there, [n, V] float32 on the CPU.
    """
    rows: list[int] = []
    found: list[torch.Tensor] = []
    compared = list(case.compared)
    if adapter is None:
        runner.reset()
    else:
        runner.reset(adapter=adapter)
    for slot, length in enumerate(case.prompts):
        if slot not in compared:
            runner.prefill(tokens[:length], slot)
            continue
        wanted = case.prompt_rows(length, runner.manifest.model.vocab_size)
        start = 0
        for block in runner.prefill_logits(tokens[:length], slot):
            chosen = [index for index in range(len(block)) if start + index in wanted]
            found.append(torch.as_tensor(block[chosen]).cpu())
            rows += [start + index for index in chosen]
            start += len(block)
    idle = [None] * (runner.manifest.sizes.max_batch - len(case.prompts))
    for step in range(DECODED):
        positions = [length + step for length in case.prompts]
        logits = runner.decode([*(tokens[position] for position in positions), *idle])
        rows += [positions[slot] for slot in compared]
        found.append(torch.as_tensor(logits[compared]).cpu())
    return rows, torch.cat(found)


def _check_lengths(lengths: list[int], limit: int) -> list[int]:
    raise_all(
        UsageError,
        f"--lengths that the artifact cannot run (context {limit + DECODED}, {DECODED} tokens are decoded)",
        [f"{length}: expected 1 to {limit}" for length in lengths if not 1 <= length <= limit],
    )
    return sorted(set(lengths))


def _batch_case(count: int, lengths: list[int], limit: int) -> Case:
    """`count` prompts of different lengths, the longest first. Those that are not compared are short."""
    compared = min(count, COMPARED)
    candidates = sorted({*lengths, *(max(1, lengths[-1] * part // compared) for part in range(1, compared))})
    chosen = [candidates[-1 - index * len(candidates) // compared] for index in range(compared)]
    prompts = [min(limit, 1 + slot) for slot in range(count)]
    for slot, length in zip(_spread(count, compared), chosen, strict=True):
        prompts[slot] = length
    label = " ".join(map(str, chosen)) if count == compared else f"of {count}"
    return Case(f"batch {label}", tuple(prompts))


def _spread(count: int, some: int) -> list[int]:
    """`some` of the numbers from 0 to count - 1, the first and the last among them."""
    return [index * (count - 1) // max(1, some - 1) for index in range(some)]

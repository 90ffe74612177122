"""Is the artifact right? Its logits against an oracle's on the same checkpoint, teacher-forced.

One random sequence serves all lengths. For a length n the artifact prefills n tokens and decodes the next
few one at a time; the logits after the last prompt tokens and after each decoded one are compared. The
default lengths cross what implementations get wrong: the sliding window, the chunk border, the wrap of
the ring and, where the context reaches, the 4,096 positions from which YaRN extrapolates. A last case
runs prompts of unequal lengths in one batch.

float32 artifacts are held to TOLERANCES. For bfloat16 the bar is the oracle's own: the error against the
oracle in float32 may be 1.25 times what the oracle itself errs by in bfloat16, over all positions that are
compared (over one case's few positions a maximum is a matter of luck). Experts are chosen by comparing
numbers, so a token whose router margin is below the rounding may go to another expert in either; such
tokens are counted ("near ties") and stay in the figures.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError, raise_all
from .metric import TOLERANCES, Error, error
from .oracles import open_oracle, release
from .progress import Steps
from .runtime import Runner

BF16_BAR = 1.25
DECODED = 8  # teacher-forced decode steps after each prefill
KEPT = 24  # prompt positions compared, the last ones
NEAR_TIE = 2**-7  # router margin in logits, relative to bfloat16's rounding of numbers near 1


@dataclass(frozen=True)
class Case:
    """Prompts that run together, one a slot, given by their lengths; all start the same sequence."""

    label: str
    prompts: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(self.prompts)


@dataclass(frozen=True)
class Row:
    """The comparison of one case."""

    label: str
    rows: int
    error: Error
    oracle_error: Error | None
    bound: Error
    top1: float
    kl: float

    @property
    def passed(self) -> bool:
        return self.error.within(self.bound)


@dataclass
class Report:
    """All rows of one verification."""

    artifact: str
    oracle: str
    dtype: str
    near_ties: int
    tokens: int
    bound: Error
    rows: list[Row] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed} | asdict(self) | {
            "rows": [asdict(row) | {"passed": row.passed} for row in self.rows]
        }


def default_lengths(runner: Runner) -> list[int]:
    """Lengths around every border that this artifact has, as far as its context reaches."""
    manifest = runner.manifest
    window, chunk = manifest.model.sliding_window, max(manifest.prefill_chunks)
    ring = window + chunk
    yarn = manifest.model.rope.original_max_position_embeddings
    borders = (window, chunk, ring, 2 * ring, yarn)
    lengths = {1, *(border + step for border in borders for step in (-1, 0, 1))}
    return sorted(n for n in lengths if 1 <= n <= manifest.max_context - DECODED)


def verify(
    artifact: Path,
    checkpoint: Path,
    oracle: str,
    lengths: list[int] | None,
    verify_hashes: bool = True,
    steps: Steps | None = None,
) -> Report:
    """Compare the artifact with the oracle; the report says whether every case passed."""
    steps = steps or Steps()
    with steps.step("load the artifact"):
        runner = Runner.load(artifact, verify_hashes)
    manifest, device = runner.manifest, runner.device
    lengths = _check_lengths(lengths, runner) if lengths else default_lengths(runner)
    cases = [Case(str(n), (n,)) for n in lengths] + _batch_case(runner, lengths)
    generator = random.Random(0)
    total = max(case.longest for case in cases) + DECODED
    tokens = [generator.randrange(manifest.model.vocab_size) for _ in range(total)]
    with steps.step("run the artifact"):
        compared = {case: _run(runner, case, tokens) for case in cases}
    del runner
    release()
    wanted = sorted({row for rows, _ in compared.values() for row in rows})

    def run_oracle(dtype: torch.dtype) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        with steps.step(f"run {oracle} in {str(dtype).removeprefix('torch.')}"):
            model = open_oracle(oracle, checkpoint, dtype, device)
            logits = dict(zip(wanted, model.logits(tokens, wanted), strict=True))
            margin = model.router_margin()
        del model
        release()
        return logits, margin

    expected, margin = run_oracle(torch.float32)
    dtype = getattr(torch, manifest.dtype)
    rounded = None if dtype == torch.float32 else run_oracle(dtype)[0]
    near_ties = int((margin < NEAR_TIE).sum())
    bound = TOLERANCES[dtype]
    if rounded is not None:
        bound = error(torch.stack(list(rounded.values())), torch.stack(list(expected.values()))).times(BF16_BAR)
    report = Report(str(artifact), oracle, manifest.dtype, near_ties, total, bound)
    for case, (rows, logits) in compared.items():
        report.rows.append(_compare(case, rows, logits, expected, rounded, bound))
    return report


def _check_lengths(lengths: list[int], runner: Runner) -> list[int]:
    limit = runner.manifest.max_context - DECODED
    raise_all(
        UsageError,
        f"--lengths that this artifact cannot run (context {runner.manifest.max_context}, {DECODED} tokens are decoded)",
        [f"{n}: expected 1 to {limit}" for n in lengths if not 1 <= n <= limit],
    )
    return sorted(set(lengths))


def _batch_case(runner: Runner, lengths: list[int]) -> list[Case]:
    """Unequal prompts in all slots, the longest first; nothing where there is one slot."""
    slots = runner.manifest.max_batch
    if slots == 1:
        return []
    chosen = tuple(lengths[-1 - index * len(lengths) // slots] for index in range(min(slots, 8)))
    return [Case("batch " + " ".join(map(str, chosen)), chosen)]


def _run(runner: Runner, case: Case, tokens: list[int]) -> tuple[list[int], torch.Tensor]:
    """Rows of the sequence (a row a compared position), and the artifact's logits there, on the CPU."""
    rows: list[int] = []
    found: list[torch.Tensor] = []
    runner.reset()
    for slot, length in enumerate(case.prompts):
        blocks, seen = [], 0
        for block in runner.prefill_logits(tokens[:length], slot):
            seen += block.size(0)
            keep = min(block.size(0), max(0, seen - (length - KEPT)))
            blocks.append(block[block.size(0) - keep :].cpu())
        kept = torch.cat(blocks)
        rows += range(length - kept.size(0), length)
        found.append(kept)
    idle = [None] * (runner.manifest.max_batch - len(case.prompts))
    for step in range(DECODED):
        at = [length + step for length in case.prompts]
        logits = runner.decode([tokens[row] for row in at] + idle)
        rows += at
        found.append(logits[: len(at)].cpu())
    return rows, torch.cat(found)


def _compare(
    case: Case,
    rows: list[int],
    logits: torch.Tensor,
    expected: dict[int, torch.Tensor],
    rounded: dict[int, torch.Tensor] | None,
    bound: Error,
) -> Row:
    want = torch.stack([expected[row] for row in rows])
    oracle_error = None if rounded is None else error(torch.stack([rounded[row] for row in rows]), want)
    log_p, log_q = want.log_softmax(-1), logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    top1 = (want.argmax(-1) == logits.argmax(-1)).float().mean().item()
    return Row(case.label, len(rows), error(logits, want), oracle_error, bound, top1, kl)



"""Is the artifact right? Its logits against an oracle's on the same checkpoint, teacher-forced.

One random sequence serves all lengths. For a length n the artifact prefills n tokens and decodes the next
few one at a time; the logits after the last prompt tokens and after each decoded one are compared. The
default lengths cross what implementations get wrong: the sliding window, the chunk border, the wrap of
the ring and, where the context reaches, the 4,096 positions from which YaRN extrapolates. A last case
runs prompts of unequal lengths in one batch.

The longest prompt is compared at positions all over it, the others at their last few.

Another artifact of the same checkpoint can be run beside, on the same tokens: it is judged as well, and what the
two differ by may be what both together may err by.

float32 artifacts are held to TOLERANCES. For bfloat16 the bar is the oracle's own: its error in bfloat16
against itself in float32, times 1.25.

Experts are chosen by comparing numbers. A token whose router margin is below the rounding ("near tie") may go
to another expert, in the artifact or in the oracle, and its logits then differ by much; which token it hits is
luck. What rounding does to margins is measured: the change that 99 of 100 of the oracle's own stay under, over
the tokens that it sent to the same experts both times (where it did not, the margin is that of another choice).
Such tokens are counted, and shown in the error over all rows; the maximum is judged on the others. The rms is
judged on all rows where they are many (the longest prompt) and on the others where they are few, against the
worst that the oracle does over as many consecutive positions. A case whose every row has a near tie is judged on
all of them, against the oracle's error over all rows of the longest prompt.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import open_checkpoint
from ..model.config import ModelConfig
from ..errors import UsageError, raise_all
from ..artifact.manifest import Manifest, load_manifest
from .metric import TOLERANCES, Error, error
from .oracles import Routing, check_oracle, open_oracle, release
from ..progress import Steps
from ..runtime import Runner

BF16_BAR = 1.25
DECODED = 8  # teacher-forced decode steps after each prefill
KEPT = 24  # prompt positions compared, the last ones
SAMPLED = 2**28  # logits compared over the longest prompt, at most; decides at how many positions
NEAR_TIE = 2.0**-5  # router margins below are near ties in bfloat16 in any case: logits between 4 and 8 are that far apart


@dataclass(frozen=True)
class Case:
    """Prompts that run together, one a slot, given by their lengths; all start the same sequence."""

    label: str
    prompts: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(self.prompts)


@dataclass(frozen=True)
class Beside:
    """Another artifact on the same tokens: `judged` as of Row, `difference` from the first artifact likewise, and how
    often the two agree on the most likely token."""

    judged: Error
    difference: Error
    top1: float

    def within(self, bound: Error) -> bool:
        return self.judged.within(bound) and self.difference.within(bound.times(2))


@dataclass(frozen=True)
class Row:
    """The comparison of one case: `error` over all its rows, `clear` over those without a near tie in a router;
    `judged` is what `bound` is for.

    `oracle` is the oracle's error over all rows in the artifact's dtype, None for float32.
    """

    label: str
    rows: int
    near_ties: int
    error: Error
    clear: Error
    oracle: Error | None
    bound: Error
    judged: Error
    top1: float
    kl: float
    beside: Beside | None

    @property
    def passed(self) -> bool:
        return self.judged.within(self.bound) and (self.beside is None or self.beside.within(self.bound))


@dataclass
class Report:
    """All rows of one verification."""

    artifact: str
    oracle: str
    dtype: str
    near_tie: float  # router margin, in logits, below which a token is one
    near_ties: int
    tokens: int
    beside: str | None
    rows: list[Row] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed} | asdict(self) | {
            "rows": [asdict(row) | {"passed": row.passed} for row in self.rows]
        }


def default_lengths(manifests: Iterable[Manifest], limit: int) -> list[int]:
    """Lengths around every border that one of these artifacts has, up to `limit`."""
    lengths = {1}
    for manifest in manifests:
        window, chunk = manifest.model.sliding_window, max(manifest.prefill_chunks)
        ring = window + chunk
        yarn = manifest.model.rope.original_max_position_embeddings
        lengths |= {border + step for border in (window, chunk, ring, 2 * ring, yarn) for step in (-1, 0, 1)}
    return sorted(n for n in lengths if 1 <= n <= limit)


def verify(
    artifact: Path,
    checkpoint: Path,
    oracle: str,
    lengths: list[int] | None,
    verify_hashes: bool = True,
    steps: Steps | None = None,
    beside: Path | None = None,
) -> Report:
    """Compare the artifact with the oracle; the report says whether every case passed.

    `beside`: another artifact of the checkpoint, compared with both. The lengths and the batch are those that
    both artifacts can run; the default lengths are around the borders of both.
    """
    steps = steps or Steps()
    check_oracle(oracle)
    config = open_checkpoint(checkpoint).config
    manifests = [load_manifest(folder) for folder in (artifact, beside) if folder is not None]
    manifest = manifests[0]
    for found in manifests:
        _check_config(config, found)
    if len({(found.dtype, found.device) for found in manifests}) > 1:
        raise UsageError(f"--beside: {beside} is {manifests[1].dtype} for {manifests[1].device}, "
                         f"expected {manifest.dtype} for {manifest.device} as {artifact} is")  # fmt: skip
    limit = min(found.max_context for found in manifests) - DECODED
    lengths = _check_lengths(lengths or default_lengths(manifests, limit) or [1], limit)
    cases = [Case(str(n), (n,)) for n in lengths] + _batch_case(min(found.max_batch for found in manifests), lengths)
    generator = random.Random(0)
    total = max(case.longest for case in cases) + DECODED
    tokens = [generator.randrange(manifest.model.vocab_size) for _ in range(total)]
    longest = max(cases[: len(lengths)], key=lambda case: case.longest)
    spread = _spread(longest.longest, manifest.model.vocab_size)

    def run_artifact(folder: Path) -> dict[Case, tuple[list[int], torch.Tensor]]:
        with steps.step(f"load {folder}"):
            runner = Runner.load(folder, verify_hashes)
        with steps.step(f"run {folder}"):
            found = {case: _run(runner, case, tokens, spread if case == longest else None) for case in cases}
        del runner
        release()
        return found

    compared, device = run_artifact(artifact), torch.device(manifest.device)
    others = None if beside is None else run_artifact(beside)
    wanted = sorted({row for rows, _ in compared.values() for row in rows})

    def run_oracle(dtype: torch.dtype) -> tuple[dict[int, torch.Tensor], Routing]:
        with steps.step(f"run {oracle} in {str(dtype).removeprefix('torch.')}"):
            model = open_oracle(oracle, checkpoint, dtype, device)
            logits = dict(zip(wanted, model.logits(tokens, wanted), strict=True))
            routing = model.routing()
        del model
        release()
        return logits, routing

    expected, routing = run_oracle(torch.float32)
    margin = routing.margin
    dtype = getattr(torch, manifest.dtype)
    rounded, near_tie = None, 0.0
    if dtype != torch.float32:
        rounded, rounded_routing = run_oracle(dtype)
        near_tie = _near_tie(routing, rounded_routing)
    report = Report(
        str(artifact), oracle, manifest.dtype, near_tie, int((margin < near_tie).sum()), total,
        None if beside is None else str(beside),
    )  # fmt: skip
    with steps.step("compare"):
        clear = (margin >= near_tie).tolist()
        bar = _Bar(TOLERANCES[dtype], expected, rounded, clear, compared[longest][0])
        report.rows += [
            _compare(case, rows, logits, bar, case == longest, None if others is None else others[case][1])
            for case, (rows, logits) in compared.items()
        ]
    return report


def _near_tie(exact: Routing, rounded: Routing) -> float:
    """The margin that rounding may turn over, from the oracle's routing without and with it.

    0 where every expert is chosen, infinite where rounding sent every token to other experts.
    """
    finite = exact.margin.isfinite()
    if not finite.any():
        return 0.0
    same = finite & (exact.chosen == rounded.chosen)
    change = (exact.margin - rounded.margin)[same].abs()
    return max(NEAR_TIE, change.quantile(0.99).item()) if len(change) else float("inf")


class _Bar:
    """What errors are held to: the tolerances of float32, or the oracle's own errors in the artifact's dtype.

    clear[row] says that no router had a near tie there; `many` are the rows of the longest prompt. `whole` is for that
    prompt, `piece` for other cases, `unclear` for those of both that have no clear row.
    """

    def __init__(
        self,
        tolerance: Error,
        expected: dict[int, torch.Tensor],
        rounded: dict[int, torch.Tensor] | None,
        clear: list[bool],
        many: list[int],
    ) -> None:
        self.expected, self.rounded, self.clear = expected, rounded, clear
        self.whole = self.piece = self.unclear = tolerance
        if rounded is not None:
            size = KEPT + DECODED
            total = self.oracle_error(many)
            self.whole = self.piece = self.unclear = total.times(BF16_BAR)
            pieces = [self.clear_rows(many[start : start + size]) for start in range(0, len(many), size)]
            if pieces := [piece for piece in pieces if piece]:
                maximum = self.oracle_error(self.clear_rows(many)).max
                worst = max(self.oracle_error(piece).rms for piece in pieces)
                self.whole = Error(maximum, total.rms).times(BF16_BAR)
                self.piece = Error(maximum, worst).times(BF16_BAR)

    def clear_rows(self, rows: list[int]) -> list[int]:
        """Rows without a near tie."""
        return [row for row in rows if self.clear[row]]

    def bound(self, rows: list[int], many: bool) -> Error:
        """For a case of these rows."""
        if not self.clear_rows(rows):
            return self.unclear
        return self.whole if many else self.piece

    def oracle_error(self, rows: list[int]) -> Error | None:
        if self.rounded is None:
            return None
        return error(_stack(self.rounded, rows), _stack(self.expected, rows))


def _stack(logits: dict[int, torch.Tensor], rows: list[int]) -> torch.Tensor:
    return torch.stack([logits[row] for row in rows])


def _spread(length: int, vocabulary: int) -> set[int]:
    """Positions of the longest prompt to compare: all over it, and its last ones."""
    count = max(KEPT, min(length, SAMPLED // vocabulary))
    return {index * length // count for index in range(count)} | set(range(max(0, length - KEPT), length))


def _check_config(checkpoint: ModelConfig, manifest: Manifest) -> None:
    problems = [
        f"{field.name}: the checkpoint has {there!r}, the artifact {here!r}"
        for field in fields(manifest.model)
        if (there := getattr(checkpoint, field.name)) != (here := getattr(manifest.model, field.name))
        and field.name != "eos_token_ids"
    ]
    raise_all(UsageError, "--checkpoint is another model than the artifact was built from", problems)


def _check_lengths(lengths: list[int], limit: int) -> list[int]:
    raise_all(
        UsageError,
        f"--lengths that the artifact cannot run (context {limit + DECODED}, {DECODED} tokens are decoded)",
        [f"{n}: expected 1 to {limit}" for n in lengths if not 1 <= n <= limit],
    )
    return sorted(set(lengths))


def _batch_case(slots: int, lengths: list[int]) -> list[Case]:
    """Unequal prompts in all slots (eight at most), the longest first; nothing where there is one slot."""
    slots = min(slots, 8)
    if slots == 1:
        return []
    spread = sorted({*lengths, *(max(1, lengths[-1] * part // slots) for part in range(1, slots))})
    chosen = tuple(spread[-1 - index * len(spread) // slots] for index in range(slots))
    return [Case("batch " + " ".join(map(str, chosen)), chosen)]


def _run(
    runner: Runner, case: Case, tokens: list[int], positions: set[int] | None
) -> tuple[list[int], torch.Tensor]:
    """Positions compared (the last prompt ones, or `positions`, and the decoded ones), the artifact's logits there."""
    rows: list[int] = []
    found: list[torch.Tensor] = []
    runner.reset()
    for slot, length in enumerate(case.prompts):
        kept = set(range(max(0, length - KEPT), length)) if positions is None else positions
        row = 0
        for block in runner.prefill_logits(tokens[:length], slot):
            chosen = [index for index in range(len(block)) if row + index in kept]
            found.append(torch.as_tensor(block[chosen]).cpu())
            rows += [row + index for index in chosen]
            row += len(block)
    idle = [None] * (runner.manifest.max_batch - len(case.prompts))
    for step in range(DECODED):
        at = [length + step for length in case.prompts]
        logits = runner.decode([tokens[row] for row in at] + idle)
        rows += at
        found.append(torch.as_tensor(logits[: len(at)]).cpu())
    return rows, torch.cat(found)


def _compare(
    case: Case, rows: list[int], logits: torch.Tensor, bar: _Bar, many: bool, other: torch.Tensor | None
) -> Row:
    """many: whether this case is the longest prompt."""
    want = _stack(bar.expected, rows)
    log_p, log_q = want.log_softmax(-1), logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    chosen = [index for index, row in enumerate(rows) if bar.clear[row]]

    def errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[Error, Error, Error]:
        """Over all rows, over those without a near tie (all where each has one), and what is judged of the two."""
        whole = error(actual, expected)
        clear = error(actual[chosen], expected[chosen]) if chosen else whole
        return whole, clear, Error(clear.max, whole.rms if many else clear.rms)

    def top1(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return (expected.argmax(-1) == actual.argmax(-1)).float().mean().item()

    whole, clear, judged = errors(logits, want)
    beside = other if other is None else Beside(errors(other, want)[2], errors(logits, other)[2], top1(logits, other))
    return Row(
        label=case.label, rows=len(rows), near_ties=sum(not bar.clear[row] for row in rows),
        error=whole, clear=clear, oracle=bar.oracle_error(rows), bound=bar.bound(rows, many),
        judged=judged, top1=top1(logits, want), kl=kl, beside=beside,
    )  # fmt: skip

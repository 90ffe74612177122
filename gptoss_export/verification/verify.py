"""Is an artifact right? Compares its logits with an oracle's on the same checkpoint.

cases.py       which prompts are run, and at which positions their logits are compared
oracles.py     what they are compared with
metric.py      how far two tensors are apart
near_ties.py   tokens that two correct implementations may route to different experts
bounds.py      how far an artifact may deviate
spans.py       the deviations by position
report.py      the result
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeAlias

import torch

from ..artifact.keys import Trust, read_trusted_keys
from ..artifact.manifest import Manifest, load_manifest
from ..artifact.signature import signature_check
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.adapter import AddedAdapter, open_added_adapter
from ..errors import UsageError, raise_all
from ..loading import load
from ..machine_limits import reports_limits
from ..model.config import ModelConfig
from ..model.dtypes import dtype_name, torch_dtype
from ..progress import Progress
from ..values import shown
from .bounds import Bounds
from .cases import DECODED, Case, make_cases, run_case
from .compare import compare_case
from .near_ties import FLOAT32_MARGIN, margin_quantiles, near_tie_margin
from .oracles import Oracle, check_oracle, check_takes_adapter, open_oracle
from .report import Report

# case -> the positions that were compared, and the logits [n, V] there
ADAPTER = "adapter"  # the name that an adapter is loaded under
Results: TypeAlias = dict[Case, tuple[list[int], torch.Tensor]]


@reports_limits()
def verify(
    artifact: Path | str,
    checkpoint: Path | str,
    oracle: str = "transformers",
    lengths: list[int] | None = None,
    verify_hashes: bool = True,
    progress: Progress | None = None,
    compare_with: Path | str | None = None,
    trust: Trust = None,
    adapter: Path | str | None = None,
) -> Report:
    """Compare the artifact with an oracle on the checkpoint that it was built from. `Report.passed` is the answer.

    oracle         "transformers" or "reference"
    lengths        prompt lengths; None: around every border of the artifact
    verify_hashes  compare the hashes of all files of the artifact when it is loaded
    compare_with   another artifact of the checkpoint, which is compared with the oracle and with the first one. Only
                   cases that both can run are used
    trust          as of `load`, for both artifacts
    adapter        the adapter that the artifact was built with; an artifact with adapter slots that was built without
                   one loads it

    Raises UsageError for options that do not fit, CheckpointError, ArtifactError, MachineError.
    """
    progress = progress or Progress()
    folders = [Path(folder) for folder in (artifact, compare_with) if folder is not None]
    check_oracle(oracle)
    keys = read_trusted_keys(trust, verify_hashes)
    manifests = [load_manifest(folder, signature_check(folder, keys)) for folder in folders]
    manifest = manifests[0]
    given = None if adapter is None else Path(adapter)
    loads = _check_adapters(folders, manifests, given)
    if loads:
        check_takes_adapter(oracle)
    opened = open_checkpoint(Path(checkpoint), None if loads else given, manifest.model.expert_format.option)
    added = open_added_adapter(given, opened.config) if loads and given is not None else None
    _check_manifests(folders, manifests, opened.config)
    cases = make_cases(manifests, lengths)
    tokens = _random_tokens(max(case.longest for case in cases) + DECODED, manifest.model.vocab_size)

    loaded = given if loads else None
    results = [_run_artifact(folder, cases, tokens, verify_hashes, progress, trust, loaded) for folder in folders]
    rows = sorted({row for compared, _ in results[0].values() for row in compared})

    device, dtype = torch.device(manifest.device), torch_dtype(manifest.dtype)
    with progress.stage(f"run {oracle} in float32"):
        model = _oracle(oracle, opened, torch.float32, device, added)
        exact = model.run(tokens, rows)
    near_tie, rounded, other_side = FLOAT32_MARGIN, None, None
    if dtype != torch.float32:
        del model
        _free_memory()
        with progress.stage(f"run {oracle} in {dtype_name(dtype)}"):
            model = _oracle(oracle, opened, dtype, device, added)
            rounded = model.run(tokens, rows)
        near_tie = near_tie_margin(exact.routing, rounded.routing)
    no_tie = (exact.routing.margin >= near_tie).tolist()
    if not all(no_tie):
        with progress.stage(f"run {oracle} with near ties decided the other way"):
            other_side = model.run(tokens, rows, near_tie)
    del model
    _free_memory()

    with progress.stage("compare"):
        bounds = Bounds(
            exact.logits,
            None if rounded is None else rounded.logits,
            None if other_side is None else other_side.logits,
            no_tie,
        )
        others = results[1] if compare_with is not None else None
        compared_rows = [
            compare_case(case, compared, logits, bounds, None if others is None else others[case][1])
            for case, (compared, logits) in results[0].items()
        ]
    return Report(
        artifact=str(artifact),
        compare_with=None if compare_with is None else str(compare_with),
        oracle=oracle,
        dtype=manifest.dtype,
        near_tie=near_tie,
        near_ties=no_tie.count(False),
        tokens=len(tokens),
        margins=margin_quantiles(exact.routing),
        rows=compared_rows,
    )


def _oracle(
    name: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, added: AddedAdapter | None
) -> Oracle:
    model = open_oracle(name, checkpoint, dtype, device)
    if added is not None:
        model.add(added)
    return model


def _run_artifact(
    folder: Path,
    cases: Sequence[Case],
    tokens: Sequence[int],
    verify_hashes: bool,
    progress: Progress,
    trust: Trust,
    adapter: Path | None,
) -> Results:
    with progress.stage(f"load {folder}"):
        runner = load(folder, verify_hashes, trust=trust)
        if adapter is not None:
            runner.load_adapter(ADAPTER, adapter)
    with progress.stage(f"run {folder}"):
        results: Results = {}
        for case in cases:
            progress.update(f"run {folder}: prompt of {case.label} tokens")
            results[case] = run_case(runner, case, tokens, None if adapter is None else ADAPTER)
    del runner
    _free_memory()
    return results


def _random_tokens(count: int, vocabulary: int) -> list[int]:
    generator = random.Random(0)
    return [generator.randrange(vocabulary) for _ in range(count)]


def _check_adapters(folders: Sequence[Path], manifests: Sequence[Manifest], adapter: Path | None) -> bool:
    """Whether the artifacts load the adapter into a slot. Raises UsageError where an artifact has an adapter merged and
    none is given, where one is given that an artifact neither has nor can load, and where artifacts differ in this."""
    given = None if adapter is None else adapter.resolve().name
    problems, loads = [], []
    for folder, manifest in zip(folders, manifests, strict=True):
        built = manifest.provenance.options.get("adapter")
        if built is not None and given is None:
            problems.append(f"{folder} was built with the adapter {shown(built)}: give its folder with --adapter")
        elif built is None and given is not None and not manifest.sizes.adapter_slots:
            problems.append(f"--adapter {given}: {folder} was built without an adapter, and without adapter slots")
        loads.append(built is None and given is not None)
    if not problems and len(set(loads)) > 1:
        problems.append(
            f"--adapter {given}: {folders[loads.index(True)]} would load it, and {folders[loads.index(False)]} has it "
            "merged; verify them one after the other"
        )
    raise_all(UsageError, "adapters that an artifact was not built with", problems)
    return all(loads)


def _check_manifests(folders: Sequence[Path], manifests: Sequence[Manifest], config: ModelConfig) -> None:
    """Raise UsageError where an artifact is of another model, or where the two artifacts cannot be compared."""
    for manifest in manifests:
        problems = [
            f"{field.name}: the checkpoint has {found!r}, the artifact {built!r}"
            for field in fields(manifest.model)
            if (found := getattr(config, field.name)) != (built := getattr(manifest.model, field.name))
            and field.name != "eos_token_ids"
        ]
        raise_all(UsageError, "--checkpoint is another model than the artifact was built from", problems)
    first = manifests[0]
    for folder, other in zip(folders[1:], manifests[1:], strict=True):
        if (other.dtype, other.device) != (first.dtype, first.device):
            raise UsageError(
                f"--compare-with: {folder} is {other.dtype} for {other.device}, "
                f"expected {first.dtype} for {first.device} as {folders[0]} is"
            )


def _free_memory() -> None:
    """Give back the memory of a model that was dropped, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Facts of the size of a 20b on an H200, made up: reports of `bench` and `verify`, and a manifest."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from gptoss_export.artifact.files import FileSpec
from gptoss_export.artifact.manifest import Manifest, Part, Provenance, WeightSpec
from gptoss_export.artifact.programs import Sizes, programs_of
from gptoss_export.bench import BenchReport, KernelTime, Measurement
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers
from gptoss_export.model.parameters import parameters
from gptoss_export.verification.metric import Deviation
from gptoss_export.verification.report import Comparison, Report, Row, Span
from gptoss_export.workload import Spread, WorkloadReport

HOSTILE = "<script>alert(1)</script> & \"x\" onload='y' $\\frac{1$ \x1b[31m \u202e \ud800 \ufffe ]]> 日本 <!-- --"
STEPS_MS = {1: 1.414, 2: 2.171, 4: 2.694, 8: 3.487, 16: 4.286, 32: 4.875, 64: 5.984}
FLOORS_MS = {1: 0.848, 2: 1.107, 4: 1.536, 8: 2.127, 16: 2.700, 32: 3.023, 64: 3.291}
STARTUP = {"start Python": 0.31, "load weights, compare hashes": 1.98, "first prompt, 1,024 tokens": 0.29}
KERNELS = [("_gate_up_pdl", 24, 425.5), ("_logits_pdl", 1, 255.6), ("_qkv_pdl", 24, 216.7), ("_combine_pdl", 12, 10.4)]


def measurement(batch: int, context: int) -> Measurement:
    longer = 1 + (context - 1024) / 100_000
    step = STEPS_MS[batch] * longer / 1e3
    return Measurement(
        batch, context, 50_000 + context, context * batch / 5e4, step, batch / step, FLOORS_MS[batch] / 1e3
    )


def bench_report(
    batches: Sequence[int] = tuple(STEPS_MS),
    contexts: Sequence[int] = (1024, 8192),
    kernels: Sequence[tuple[str, float, float]] = KERNELS,
    name: str = "artifacts/20b",
    served: bool = True,
) -> BenchReport:
    workload = WorkloadReport(
        "mixed", 256, 180_321, 60_123, 9.25, 6487.3, Spread(2.1, 6.2), Spread(0.0069, 0.0375), 3 << 30
    )
    return BenchReport(
        artifact=name,
        machine="NVIDIA H200",
        versions={"torch": "2.11.0+cu130", "triton": "3.6.0"},
        startup_s=dict(STARTUP),
        bandwidth=4.35e12,
        memory=14_900_000_000,
        weights_and_cache=14_300_000_000,
        measurements=[measurement(batch, context) for context in contexts for batch in batches],
        kernels=[KernelTime(*kernel) for kernel in kernels],
        workload=workload if served else None,
    )


def spans(length: int, rounded: bool, compared: bool, ties: bool) -> tuple[Span, ...]:
    """A span for each of the last 24 positions of a prompt and of 8 decoded tokens; every sixth has a near tie."""
    generator = random.Random(length)

    def near(rms: float) -> Deviation:
        found = rms * generator.uniform(0.7, 1.3)
        return Deviation(5 * found, found)

    found = []
    for position in range(max(0, length - 24), length + 8):
        tie = ties and position % 6 == 0
        rms = (5e-2 if tie else 1.1e-2) if rounded else 4e-7
        oracle = near(1.4 * rms) if rounded else None
        other, apart = (near(rms), near(rms)) if compared else (None, None)
        found.append(Span(position, position, 1, tie, position >= length, near(rms), oracle, other, apart))
    return tuple(found)


def row(label: str, length: int, rounded: bool, compared: bool, ties: bool, sampled: bool = False) -> Row:
    error, bound = (Deviation(7.1e-2, 1.12e-2), Deviation(1.63e-1, 2.9e-2))
    if not rounded:
        error, bound = Deviation(3.7e-6, 4.3e-7), Deviation(1e-4, 2e-5)
    return Row(
        label=label,
        rows=32,
        sampled=sampled,
        near_ties=6 if ties else 0,
        all=error,
        oracle=error.times(1.4) if rounded else None,
        gated=error,
        bound=bound,
        tie=error.times(4) if ties else None,
        tie_bound=bound.times(8) if ties else None,
        top1=0.97,
        kl=1.23e-3,
        comparison=Comparison(error.times(1.1), error.times(0.9), 0.92, True) if compared else None,
        spans=spans(length, rounded, compared, ties),
    )


def verify_report(
    lengths: Sequence[int] = (1, 63, 129, 4097),
    rounded: bool = True,
    compared: bool = True,
    ties: bool = True,
    name: str = "artifacts/20b",
) -> Report:
    rows = [row(str(length), length, rounded, compared, ties, length == max(lengths)) for length in lengths]
    rows.append(row("batch 4097 2048", 4000, rounded, compared, ties))
    margins = tuple(10 ** (-3 + 3 * index / 100) for index in range(101))
    return Report(
        artifact=name,
        compare_with="artifacts/other" if compared else None,
        oracle="transformers",
        dtype="bfloat16" if rounded else "float32",
        near_tie=3.1e-2 if rounded else 1e-4,
        near_ties=2050 if ties else 0,
        tokens=4105,
        margins=margins,
        rows=rows,
    )


def with_nan(report: Report, index: int) -> Report:
    """The report with a case whose later positions are no numbers."""
    nan = Deviation(math.nan, math.nan)
    broken = report.rows[index]
    found = tuple(span if at < 5 else replace(span, error=nan) for at, span in enumerate(broken.spans))
    rows = list(report.rows)
    rows[index] = replace(broken, gated=nan, all=nan, spans=found)
    return replace(report, rows=rows)


def manifest(
    preset: str = "20b", widths: tuple[int, ...] = (1, 2, 64), context: int = 8192, layers: int | None = None
) -> Manifest:
    model = PRESETS[preset] if layers is None else with_layers(PRESETS[preset], layers)
    sizes, dtype = Sizes(widths, context, (128, 2048)), "bfloat16"
    return Manifest(
        target="aoti",
        target_options={},
        device="cuda",
        archs=("sm_90", "sm_80"),
        dtype=dtype,
        model=model,
        sizes=sizes,
        stop_tokens=(200002,),
        programs={item.name: item.signature(model, sizes, dtype) for item in programs_of(sizes, "cuda")},
        weights={
            item.name: WeightSpec(item.shape, item.dtype, (Part("weights/a.safetensors", item.name),))
            for item in parameters(model, dtype)
        },
        files={
            "weights/a.safetensors": FileSpec(13_800_000_000, "ab" * 32, ()),
            "programs-sm_90.pt2": FileSpec(17_200_000, "cd" * 32, ()),
        },
        versions={"torch": "2.11.0+cu130", "triton": "3.6.0"},
        source="checkpoints/20b (layout hf)",
        provenance=Provenance(
            machine="x86_64",
            system="Linux 6.8",
            gpu="NVIDIA H200",
            options={"target": "aoti", "max_batch": 64},
            source_sha256="ef" * 32,
            tuned_configs={"sm_90": ["NVIDIA H200, torch 2.11.0, 0123456789ab"], "sm_80": []},
        ),
    )

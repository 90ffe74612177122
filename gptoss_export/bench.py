"""How fast an artifact runs, and how far that is from what the memory allows.

The floor of a decode step is the bytes it cannot avoid reading divided by the bandwidth measured here:
every weight outside of the experts once (of the embedding only its rows), the experts that B tokens with K
choices among E reach when they choose at random, E (1 - (1 - K / E)^B), and the keys and values that the
positions see.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError, raise_all
from .manifest import Manifest
from .progress import Steps
from .runtime import Runner

STEPS = 64  # decode steps timed, the last ones up to the context


@dataclass(frozen=True)
class Measurement:
    """One batch and context: prefill and first token of a prompt as long as the context, and the decode
    steps that lead up to it. Times in seconds; floor_s is the least a decode step can take."""

    batch: int
    context: int
    prefill_tok_s: float
    ttft_s: float
    decode_step_s: float
    decode_tok_s: float
    floor_s: float

    @property
    def share_of_floor(self) -> float:
        return self.floor_s / self.decode_step_s


@dataclass
class BenchReport:
    """What `bench` found. bandwidth in bytes a second; memory in bytes, on the GPU (0 on CPU)."""

    artifact: str
    machine: str
    versions: dict[str, str]
    load_s: dict[str, float]
    bandwidth: float
    memory: int
    weights_and_cache: int
    measurements: list[Measurement] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(row) | {"share_of_floor": row.share_of_floor} for row in self.measurements]
        return asdict(self) | {"measurements": rows}


def bench(
    artifact: Path, batches: list[int], contexts: list[int], verify_hashes: bool = True, steps: Steps | None = None
) -> BenchReport:
    """Time every batch with every context that fits the artifact; UsageError where one does not."""
    steps = steps or Steps()
    with steps.step("load the artifact"):
        runner = Runner.load(artifact, verify_hashes)
    manifest, device = runner.manifest, runner.device
    problems = [f"--batch {n}: expected 1 to {manifest.max_batch}" for n in batches if not 1 <= n <= manifest.max_batch]
    problems += [f"--context {n}: expected 2 to {manifest.max_context}"
                 for n in contexts if not 2 <= n <= manifest.max_context]  # fmt: skip
    raise_all(UsageError, f"{artifact}: too small for this benchmark", problems)
    with steps.step("measure the bandwidth"):
        bandwidth = read_bandwidth(device)
    report = BenchReport(
        artifact=str(artifact),
        machine=torch.cuda.get_device_name() if device.type == "cuda" else manifest.arch,
        versions=manifest.versions,
        load_s=runner.load_seconds,
        bandwidth=bandwidth,
        memory=0,
        weights_and_cache=_bytes(manifest, "weight") + _bytes(manifest, "cache"),
    )
    for context in contexts:
        for batch in batches:
            with steps.step(f"batch {batch}, context {context}"):
                report.measurements.append(_measure(runner, batch, context, bandwidth))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        report.memory = total - free
    return report


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second that a plain reduction reads from memory, the best of several passes."""
    size = 4 << 30 if device.type == "cuda" else 1 << 28
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    bandwidth = size / min(_seconds(data.sum, device) for _ in range(6))
    del data
    if device.type == "cuda":
        torch.cuda.empty_cache()  # or it would count as the artifact's memory
    return bandwidth


def floor_bytes(manifest: Manifest, batch: int, context: int) -> float:
    """Bytes that one decode step must read."""
    config = manifest.model
    experts, choices = config.num_local_experts, config.num_experts_per_tok
    reached = 1 - (1 - choices / experts) ** batch
    total = 0.0
    for name, spec in manifest.weights.items():
        size = torch.Size(spec.shape).numel() * getattr(torch, spec.dtype).itemsize
        if name == "model.embed_tokens.weight":
            size = size // spec.shape[0] * batch
        total += size * reached if ".mlp.experts." in name else size
    position = 2 * config.num_key_value_heads * config.head_dim * getattr(torch, manifest.dtype).itemsize
    for layer in range(config.num_hidden_layers):
        total += batch * min(context, config.window(layer) or context) * position
    return total


def _bytes(manifest: Manifest, role: str) -> int:
    return sum(
        torch.Size(item.shape).numel() * getattr(torch, item.dtype).itemsize
        for item in manifest.programs["decode"].inputs
        if item.role == role
    )


def _measure(runner: Runner, batch: int, context: int, bandwidth: float) -> Measurement:
    generator = random.Random(context)
    vocabulary = runner.manifest.model.vocab_size
    prompts = [[generator.randrange(vocabulary) for _ in range(context)] for _ in range(batch)]
    runner.reset()
    runner.prefill(prompts[0])  # the first call of a program allocates
    runner.reset()
    prefill = _seconds(lambda: runner.prefill(prompts[0]), runner.device)
    start = time.perf_counter()
    runner.generate_batch(prompts, 1, stop_tokens=())
    ttft = time.perf_counter() - start
    steps = min(STEPS, context - 1)
    shorter = [prompt[: context - steps] for prompt in prompts]
    results = runner.generate_batch(shorter, steps + 1, stop_tokens=())
    step = 1 / results[0].decode_tok_s
    return Measurement(
        batch=batch,
        context=context,
        prefill_tok_s=context / prefill,
        ttft_s=ttft,
        decode_step_s=step,
        decode_tok_s=batch / step,
        floor_s=floor_bytes(runner.manifest, batch, context) / bandwidth,
    )


def _seconds(work, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start

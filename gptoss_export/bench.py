"""How fast an artifact runs, and how far that is from what the memory allows.

The floor of a decode step is the bytes it cannot avoid reading divided by the bandwidth measured here:
every weight outside of the experts once (of the embedding only its rows), the experts that B tokens with K
choices among E reach when they choose at random, E (1 - (1 - K / E)^B), and the keys and values that the
positions see.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError, raise_all
from .artifact.manifest import Manifest, WeightSpec
from .progress import Steps
from .runtime import Runner

_PROFILED = 9  # steps, of which the first warms up
STEPS = 64  # decode steps timed, the last ones up to the context
_IMPORTED = time.perf_counter()


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


@dataclass(frozen=True)
class KernelTime:
    """A kernel of the decode step: how often a step launches it, and the microseconds that they add to it.

    Kernels overlap; each counts from the end of the one before to its own end, so that they sum to the step."""

    name: str
    launches: float
    us: float


@dataclass
class BenchReport:
    """What `bench` found. bandwidth in bytes a second; memory in bytes, on the GPU (0 on CPU); startup_s the seconds
    from the start of the process on, one step after the other."""

    artifact: str
    machine: str
    versions: dict[str, str]
    startup_s: dict[str, float]
    bandwidth: float
    memory: int
    weights_and_cache: int
    measurements: list[Measurement] = field(default_factory=list)
    kernels: list[KernelTime] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(row) | {"share_of_floor": row.share_of_floor} for row in self.measurements]
        return asdict(self) | {"measurements": rows}


def bench(
    artifact: Path,
    batches: list[int],
    contexts: list[int],
    verify_hashes: bool = True,
    profile: bool = False,
    steps: Steps | None = None,
    own_process: bool = False,
) -> BenchReport:
    """Time every batch with every context that fits the artifact; UsageError where one does not.

    `profile`: the kernels of a decode step too, at the first context. `own_process`: as of `Runner.load`.
    """
    steps = steps or Steps()
    startup = {"start Python, import torch": _seconds_of_process()}
    with steps.step("load the artifact"):
        runner = Runner.load(artifact, verify_hashes, own_process=own_process)
    startup |= runner.load_seconds
    manifest, device = runner.manifest, torch.device(runner.manifest.device)
    if profile and device.type != "cuda":
        raise UsageError(f"--profile: {artifact} is for {device.type}; expected an artifact for CUDA")
    problems = [f"--batch {n}: expected 1 to {manifest.max_batch}" for n in batches if not 1 <= n <= manifest.max_batch]
    problems += [f"--context {n}: expected 2 to {manifest.max_context}"
                 for n in contexts if not 2 <= n <= manifest.max_context]  # fmt: skip
    problems += [f"{option}: expected one or more numbers" for option, values in
                 {"--batch": batches, "--context": contexts}.items() if not values]  # fmt: skip
    if profile and contexts and contexts[0] <= _PROFILED:
        problems.append(f"--context {contexts[0]}: expected more than {_PROFILED} with --profile, which runs as many steps")
    raise_all(UsageError, f"{artifact}: too small for this benchmark", problems)
    prompt = _prompt(manifest, contexts[0])
    startup[f"first prompt, {len(prompt):,} tokens"] = _seconds(lambda: runner.generate(prompt, 1), device)
    timings = {}
    for context in contexts:
        for batch in batches:
            with steps.step(f"batch {batch}, context {context}"):
                timings[batch, context] = _times(runner, batch, context)
    memory = 0
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory = total - free
    with steps.step("measure the bandwidth"):  # last, since it needs memory that is not the artifact's
        bandwidth = read_bandwidth(device)
    report = BenchReport(
        artifact=str(artifact),
        machine=torch.cuda.get_device_name() if device.type == "cuda" else manifest.arch,
        versions=manifest.versions,
        startup_s=startup,
        bandwidth=bandwidth,
        memory=memory,
        weights_and_cache=_weight_bytes(manifest) + runner._cache_bytes(),
    )
    for (batch, context), (prefill, ttft, step) in timings.items():
        floor = floor_bytes(manifest, batch, context) / bandwidth
        report.measurements.append(
            Measurement(batch, context, context / prefill, ttft, step, decode_tok_s=batch / step, floor_s=floor)
        )
    if profile:
        with steps.step("profile a decode step"):
            report.kernels = kernel_times(runner, contexts[0])
    return report


def kernel_times(runner: Runner, context: int) -> list[KernelTime]:
    """The kernels of a decode step of all slots at `context`, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    slots = list(range(runner.manifest.max_batch))
    runner.reset()
    for slot in slots:
        runner.prefill(_prompt(runner.manifest, context - _PROFILED, slot), slot)
    with torch.inference_mode():
        runner._place(slots)
        runner._step.run(sampled=False)
        with record(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(_PROFILED - 1):
                runner._step.run(sampled=False)
            torch.cuda.synchronize(torch.device(runner.manifest.device))
    runner.reset()
    events = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.end)
    steps = _PROFILED - 1
    times, counts, previous = Counter(), Counter(), 0
    for index, event in enumerate(events):
        first = index % (len(events) // steps) == 0  # before it the host launched the step, which is no kernel's time
        times[event.name] += event.time_range.end - (event.time_range.start if first else previous)
        counts[event.name] += 1
        previous = event.time_range.end
    return [KernelTime(name, counts[name] / steps, us / steps) for name, us in times.most_common()]


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second that a plain reduction reads from memory, the best of several passes."""
    size = 1 << 28
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        size = min(4 << 30, free // 2 & -4096)
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    bandwidth = size / min(_seconds(data.sum, device) for _ in range(6))
    del data
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return bandwidth


def floor_bytes(manifest: Manifest, batch: int, context: int) -> float:
    """Bytes that one decode step must read."""
    config = manifest.model
    experts, choices = config.num_local_experts, config.num_experts_per_tok
    reached = 1 - (1 - choices / experts) ** batch
    total = 0.0
    for name, spec in manifest.weights.items():
        size = _size(spec)
        if name == "model.embed_tokens.weight":
            size = size // spec.shape[0] * batch
        total += size * reached if ".mlp.experts." in name else size
    position = 2 * config.num_key_value_heads * config.head_dim * getattr(torch, manifest.dtype).itemsize
    for layer in range(config.num_hidden_layers):
        total += batch * min(context, config.window(layer) or context) * position
    return total


def _weight_bytes(manifest: Manifest) -> int:
    return sum(map(_size, manifest.weights.values()))


def _size(spec: WeightSpec) -> int:
    return torch.Size(spec.shape).numel() * getattr(torch, spec.dtype).itemsize


def _prompt(manifest: Manifest, length: int, seed: int = 0) -> list[int]:
    generator = random.Random(length + seed)
    return [generator.randrange(manifest.model.vocab_size) for _ in range(length)]


def _seconds_of_process() -> float:
    """Seconds since this process was started, or since this module was imported where the system does not tell."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, ValueError):
        return time.perf_counter() - _IMPORTED


def _times(runner: Runner, batch: int, context: int) -> tuple[float, float, float]:
    """Seconds of prefill, to the first token, and of a decode step."""
    prompts = [_prompt(runner.manifest, context, seed) for seed in range(batch)]
    runner.reset()
    runner.prefill(prompts[0][: 2 * max(runner.manifest.prefill_chunks)])  # the first call of a program allocates
    runner.reset()
    prefill = _seconds(lambda: runner.prefill(prompts[0]), torch.device(runner.manifest.device))
    start = time.perf_counter()
    runner.generate_batch(prompts, 1, stop_tokens=())
    ttft = time.perf_counter() - start
    steps = min(STEPS, context - 1)
    shorter = [prompt[: context - steps] for prompt in prompts]
    results = runner.generate_batch(shorter, steps + 1, stop_tokens=())
    return prefill, ttft, 1 / results[0].decode_tok_s


def _seconds(work, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start

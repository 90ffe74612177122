"""How fast an artifact runs, and how near that is to what the memory allows.

The floor of a decode step is the time to read the bytes that it cannot avoid, at the bandwidth measured here:

  - every weight outside of the experts once, and of the embedding the rows of the batch
  - the experts that B tokens with K choices among E reach where they choose at random: E (1 - (1 - K / E)^B)
  - the keys and values that the positions see
"""

from __future__ import annotations

import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .artifact.keys import Trust
from .artifact.manifest import Manifest
from .cuda.gpu import Gpu, current_gpu
from .errors import UsageError, raise_all
from .loading import load
from .model.dtypes import ITEM_SIZES
from .model.kv_cache import sequence_bytes
from .model.parameters import EMBEDDING, Parameter, is_expert_weight, parameters
from .model.sampling_state import Choice
from .progress import Progress
from .runtime.runner import Runner
from .workload import WorkloadReport, check_fits, read_workload, serve, warm_up_calls

_PROFILED = 9  # decode steps that are profiled; the first warms up
STEPS = 64  # decode steps that are timed, the last ones up to the context
_BANDWIDTH_PASSES = 6
_IMPORTED = time.perf_counter()
_STARTED = "start Python"  # the first stage of a start


@dataclass(frozen=True)
class Measurement:
    """The times of one batch and context, in seconds.

    batch, context               sequences at a time, tokens of each
    prefill_tok_s                tokens a second of a prefill of `context` tokens
    ttft_s                       from the call to the first tokens of all sequences
    decode_step_s, decode_tok_s  a decode step near the context; tokens a second of all sequences
    floor_s                      the least that a decode step can take
    """

    batch: int
    context: int
    prefill_tok_s: float
    ttft_s: float
    decode_step_s: float
    decode_tok_s: float
    floor_s: float

    @property
    def share_of_floor(self) -> float:
        """1 for a decode step that takes no longer than its floor."""
        return self.floor_s / self.decode_step_s


@dataclass(frozen=True)
class KernelTime:
    """A kernel of the decode step: how often a step launches it, and the microseconds that it adds to the step.

    Kernels overlap. Each one counts from the end of the kernel before it to its own end, so that they sum to the step.
    """

    name: str
    launches: float
    us: float


@dataclass(frozen=True)
class BenchReport:
    """What `bench` measured.

    startup_s          seconds of each stage from the start of the process to the first token, in order
    bandwidth          bytes a second that are read from memory
    memory             bytes in use on the GPU by all processes; 0 on a CPU
    weights_and_cache  bytes of the weights and of the KV caches
    kernels            the kernels of a decode step, the longest first; empty unless they were asked for
    workload           how a workload was served; None unless there was one
    """

    artifact: str
    machine: str
    versions: dict[str, str]
    startup_s: dict[str, float]
    bandwidth: float
    memory: int
    weights_and_cache: int
    measurements: list[Measurement]
    kernels: list[KernelTime]
    workload: WorkloadReport | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields by name, and `share_of_floor` for each measurement."""
        rows = [asdict(row) | {"share_of_floor": row.share_of_floor} for row in self.measurements]
        return asdict(self) | {"measurements": rows}


class StepBytes(NamedTuple):
    """Bytes that a decode step must read: of the experts that it reaches, of the other weights, of keys and values."""

    experts: float
    other_weights: int
    kv_cache: int

    @property
    def total(self) -> float:
        return self.experts + self.other_weights + self.kv_cache


class _Times(NamedTuple):
    """Seconds of a prefill, to the first tokens, and of a decode step."""

    prefill: float
    first_token: float
    decode_step: float


def bench(
    artifact: Path | str,
    batches: list[int],
    contexts: list[int],
    verify_hashes: bool = True,
    profile: bool = False,
    progress: Progress | None = None,
    tune_process: bool = False,
    trust: Trust = None,
    workload: Path | str | None = None,
    kv_memory: int | None = None,
) -> BenchReport:
    """Time every batch with every context, and how a workload is served.

    profile                             measure the kernels of a decode step too, of the first batch at the first
                                        context (CUDA only)
    verify_hashes, tune_process, trust,
    kv_memory                           as of `load`
    workload                            file of a workload (workload.py)

    Raises UsageError for what does not fit the artifact, ArtifactError as `load`.
    """
    progress = progress or Progress()
    requests = None if workload is None else read_workload(Path(workload))
    startup = {_STARTED: _seconds_of_process()}
    with progress.stage("load the artifact"):
        runner = load(artifact, verify_hashes, tune_process=tune_process, trust=trust, kv_memory=kv_memory)
    startup |= runner.load_seconds
    manifest, gpu = runner.manifest, current_gpu() if runner.manifest.device == "cuda" else None
    _check_request(artifact, manifest, batches, contexts, profile, requests is None)
    if requests is not None:
        check_fits(requests, runner.slots)
    prompt = _prompt(manifest, (contexts or [2])[0])
    startup[f"first prompt, {len(prompt):,} tokens"] = _seconds(lambda: runner.generate(prompt, 1), gpu)
    times: dict[tuple[int, int], _Times] = {}
    for context in contexts:
        for batch in batches:
            with progress.stage(f"batch {batch}, context {context}"):
                times[batch, context] = _times(runner, batch, context, gpu)
    memory = _memory_in_use(gpu)
    with progress.stage("measure the bandwidth"):  # after the memory, since it needs some of its own
        bandwidth = read_bandwidth(gpu)
    served = None
    if requests is not None:
        with progress.stage(f"workload {requests.name}"):
            served = serve(runner, requests, progress)
    kernels: list[KernelTime] = []
    if profile:
        with progress.stage("profile a decode step"):
            kernels = kernel_times(runner, batches[0], contexts[0])
    weights = sum(map(_size, parameters(manifest.of_rank(0).model, manifest.dtype)))
    return BenchReport(
        artifact=str(artifact),
        machine=manifest.arch if gpu is None else gpu.name,
        versions=manifest.versions,
        startup_s=startup,
        bandwidth=bandwidth,
        memory=memory,
        weights_and_cache=weights + runner.executor.kv_cache_bytes,
        measurements=[
            Measurement(
                batch=batch,
                context=context,
                prefill_tok_s=context / found.prefill,
                ttft_s=found.first_token,
                decode_step_s=found.decode_step,
                decode_tok_s=batch / found.decode_step,
                floor_s=floor_bytes(manifest, batch, context) / bandwidth,
            )
            for (batch, context), found in times.items()
        ],
        kernels=kernels,
        workload=served,
    )


def kernel_times(runner: Runner, batch: int, context: int) -> list[KernelTime]:
    """The kernels of a decode step of `batch` sequences at `context` tokens, the longest first. Resets the runner."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    slots = list(range(batch))
    start = context - _PROFILED
    runner.reset()
    for slot in slots:
        runner.prefill(_prompt(runner.manifest, start, slot), slot)
        runner.slots.reserve(slot, _PROFILED)

    def step(index: int) -> None:
        runner.executor.step(slots, [start + index] * runner.manifest.sizes.max_batch, Choice.MOST_LIKELY)

    step(0)
    with record(activities=[ProfilerActivity.CUDA]) as recorded:
        for index in range(1, _PROFILED):
            step(index)
        torch.cuda.synchronize()
    runner.reset()
    events = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.end)
    steps = _PROFILED - 1
    each = len(events) // steps
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    previous = 0
    for index, event in enumerate(events):
        # The host launches a step before its first kernel. That time belongs to no kernel.
        first = index % each == 0
        times[event.name] += event.time_range.end - (event.time_range.start if first else previous)
        counts[event.name] += 1
        previous = event.time_range.end
    return [KernelTime(name, counts[name] / steps, us / steps) for name, us in times.most_common()]


def read_bandwidth(gpu: Gpu | None) -> float:
    """Bytes a second that a plain sum of torch reads from memory, the best of several passes."""
    import torch

    size, device = 1 << 28, torch.device("cpu" if gpu is None else f"cuda:{gpu.index}")
    if gpu is not None:
        free, _ = gpu.memory()
        size = min(4 << 30, free // 2 & -4096)
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    bandwidth = size / min(_seconds(data.sum, gpu) for _ in range(_BANDWIDTH_PASSES))
    del data
    if gpu is not None:
        torch.cuda.empty_cache()
    return bandwidth


def floor_bytes(manifest: Manifest, batch: int, context: int) -> float:
    """All bytes that a decode step of `batch` sequences of `context` tokens must read."""
    return step_bytes(manifest, batch, context).total


def step_bytes(manifest: Manifest, batch: int, context: int) -> StepBytes:
    """The same in its parts. Of several ranks, what rank 0 reads: no other reads more."""
    config = manifest.of_rank(0).model
    reached = 1 - (1 - config.num_experts_per_tok / config.num_local_experts) ** batch
    experts, others = 0.0, 0
    for spec in parameters(config, manifest.dtype):
        name, size = spec.name, _size(spec)
        if is_expert_weight(name):
            experts += size * reached
        else:
            others += size // spec.shape[0] * batch if name == EMBEDDING else size
    return StepBytes(experts, others, batch * sequence_bytes(config, context, ITEM_SIZES[manifest.dtype]))


def _check_request(
    artifact: Path | str,
    manifest: Manifest,
    batches: list[int],
    contexts: list[int],
    profile: bool,
    needed: bool,
) -> None:
    """Raise UsageError for what does not fit the artifact. needed: whether there must be batches and contexts."""
    if profile and manifest.device != "cuda":
        raise UsageError(f"--profile: {artifact} is for {manifest.device}; expected an artifact for cuda")
    sizes = manifest.sizes
    problems = [f"--batch {n}: expected 1 to {sizes.max_batch}" for n in batches if not 1 <= n <= sizes.max_batch]
    problems += [
        f"--context {n}: expected 2 to {sizes.max_context}" for n in contexts if not 2 <= n <= sizes.max_context
    ]
    for option, values in {"--batch": batches, "--context": contexts}.items():
        if not values and (needed or profile or batches or contexts):
            problems.append(f"{option}: expected one or more numbers")
    if profile and contexts and contexts[0] <= _PROFILED:
        problems.append(
            f"--context {contexts[0]}: expected more than {_PROFILED} with --profile, which runs as many decode steps"
        )
    raise_all(UsageError, f"{artifact}: too small for this benchmark", problems)


def _times(runner: Runner, batch: int, context: int, gpu: Gpu | None) -> _Times:
    prompts = [_prompt(runner.manifest, context, seed) for seed in range(batch)]
    for _ in range(warm_up_calls(runner.manifest.device)):
        runner.reset()
        runner.prefill(prompts[0])
    runner.reset()
    prefill = _seconds(lambda: runner.prefill(prompts[0]), gpu)
    start = time.perf_counter()
    runner.generate_batch(prompts, 1, stop_tokens=())
    first_token = time.perf_counter() - start
    steps = min(STEPS, context - 1)
    shorter = [prompt[: context - steps] for prompt in prompts]
    results = runner.generate_batch(shorter, steps + 1, stop_tokens=())
    decode_tok_s = results[0].decode_tok_s
    assert decode_tok_s is not None  # there are two tokens or more
    return _Times(prefill, first_token, 1 / decode_tok_s)


def _size(spec: Parameter) -> int:
    return math.prod(spec.shape) * ITEM_SIZES[spec.dtype]


def _prompt(manifest: Manifest, length: int, seed: int = 0) -> list[int]:
    generator = random.Random(length + seed)
    return [generator.randrange(manifest.model.vocab_size) for _ in range(length)]


def _memory_in_use(gpu: Gpu | None) -> int:
    """Bytes of the GPU's memory that all processes use; 0 on a CPU."""
    free, total = (0, 0) if gpu is None else gpu.memory()
    return total - free


def _seconds_of_process() -> float:
    """Seconds since this process was started. Where the system does not say, since this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.perf_counter() - _IMPORTED


def _seconds(work: Callable[[], object], gpu: Gpu | None) -> float:
    """Seconds that `work` takes, until the GPU has finished it."""
    if gpu is not None:
        gpu.synchronize()
    start = time.perf_counter()
    work()
    if gpu is not None:
        gpu.synchronize()
    return time.perf_counter() - start

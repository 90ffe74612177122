"""What the user asks of a build, and what it is resolved to: every default filled in, every value checked."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifact.programs import Sizes
from .build_sizes import listed, resolve_sizes, with_adapters, with_ranks
from .errors import BuildError, UsageError, raise_all
from .kernels.kernel import ConfigChooser
from .kernels.registry import shipped_tuned_configs
from .kernels.tuned_configs import TunedConfigs, read_tuned_configs
from .model.expert_formats import EXPERTS
from .targets import TARGETS
from .targets.base_compiler import Compiler, compiler
from .training_options import TrainOptions, training_settings, training_sizes
from .values import shown, whole_number


@dataclass(frozen=True)
class BuildOptions:
    """What the user asks of a build. None: chosen by the target, the arch and the machine.

    target          what to compile to
    device          "cpu" or "cuda". None: the device of `arch`; without one the GPU, if this machine has one and the
                    target builds for it; otherwise the target's first device
    arch            one arch such as sm_90, or several with commas between them. None: this machine's
    dtype           dtype of the matrix products and the KV caches. None: the target's first for the device
    max_batch       sequences at a time
    widths          sequences that a decode step takes, one program each; `max_batch` is among them. None: 1, 2, 4, ...
                    and `max_batch`, or `max_batch` alone where the target has one decode program
    max_context     tokens that a sequence can hold
    tensor_parallel ranks that share the model, with a device each
    expert_parallel whether the ranks have different experts, and not parts of each expert
    prefill_chunks  tokens that a prefill call takes, one program each. None: what suits the device
    stop_tokens     None: those of the checkpoint
    jobs            processes that compile side by side, where the target can. None: what cores and memory allow
    tuned_configs   files of tuned configs, which are looked in before those that are shipped
    adapter         folder of a LoRA adapter that is merged into the weights (checkpoint/adapter.py)
    adapter_slots   LoRA adapters that the artifact can have loaded at a time while it runs; 0: none
    adapter_rank    the largest rank that they have; 0 without adapter slots
    experts         "mxfp4", "nf4" or "bf16": the format of the experts' weights (model/expert_formats.py). None: NF4 is
                    kept, and everything else becomes MXFP4
    train           the artifact is a training step, and does not generate; the options that are sizes of generation
                    keep their defaults
    target_options  the target's own options, of its options class. None: their defaults
    """

    target: str = TARGETS[0]
    device: str | None = None
    arch: str | None = None
    dtype: str | None = None
    max_batch: int = 1
    widths: tuple[int, ...] | None = None
    max_context: int = 4096
    tensor_parallel: int = 1
    expert_parallel: bool = False
    prefill_chunks: tuple[int, ...] | None = None
    stop_tokens: tuple[int, ...] | None = None
    jobs: int | None = None
    tuned_configs: tuple[Path, ...] = ()
    adapter: Path | None = None
    adapter_slots: int = 0
    adapter_rank: int = 0
    experts: str | None = None
    train: TrainOptions | None = None
    target_options: Any = None


@dataclass(frozen=True)
class Settings:
    """Resolved build options. `stop_tokens` are empty until the checkpoint is read, unless the user gave some."""

    target: str
    device: str
    archs: tuple[str, ...]
    dtype: str
    sizes: Sizes
    stop_tokens: tuple[int, ...]
    tuned_configs: tuple[Path, ...]
    adapter: Path | None
    experts: str | None
    target_options: Any

    def to_json(self) -> dict[str, Any]:
        """The options by name, as `inspect` shows them."""
        training = self.sizes.training
        return {
            "target": self.target,
            "device": self.device,
            "arch": ",".join(self.archs),
            "dtype": self.dtype,
            **(self._of_generation() if training is None else training_settings(training)),
            "tuned_configs": [path.name for path in self.tuned_configs],
            "adapter": None if self.adapter is None else self.adapter.resolve().name,
            "experts": self.experts,
        } | dataclasses.asdict(self.target_options)

    def _of_generation(self) -> dict[str, Any]:
        adapters = {"adapter_slots": self.sizes.adapter_slots, "adapter_rank": self.sizes.adapter_rank}
        return {
            "max_batch": self.sizes.max_batch,
            "widths": list(self.sizes.widths),
            "max_context": self.sizes.max_context,
            "tensor_parallel": self.sizes.ranks,
            "expert_parallel": self.sizes.expert_parallel,
            "prefill_chunks": list(self.sizes.prefill_chunks),
            "stop_tokens": list(self.stop_tokens),
            **(adapters if self.sizes.adapter_slots else {}),
        }


def resolve(options: BuildOptions) -> tuple[Compiler, Settings, dict[str, ConfigChooser]]:
    """The compiler of the target, the resolved options, and a chooser of launch configs for each arch.

    Reads nothing but files of tuned configs. Raises UsageError for options that are wrong, BuildError for what cannot
    be built on this machine."""
    target = compiler(options.target)
    target_options = target.options_class() if options.target_options is None else options.target_options
    if type(target_options) is not target.options_class:
        found, expected = (
            f"{kind.__module__}.{kind.__qualname__}" for kind in (type(target_options), target.options_class)
        )
        raise UsageError(f"target_options: found {found}, expected {expected}, the options of target {target.name}")
    device = resolve_device(target, options)
    problems = [
        *_dtype_problems(target, device, options.dtype),
        *target.option_problems(device, options.arch, target_options),
    ]
    sizes, size_problems = resolve_sizes(
        options.max_batch,
        options.widths,
        options.max_context,
        options.prefill_chunks,
        target.default_widths,
        target.default_prefill_chunks(device),
    )
    sizes, rank_problems = _with_ranks(sizes, options, target, device)
    sizes, adapter_problems = with_adapters(
        sizes, options.adapter_slots, options.adapter_rank, target.adapter_problem(device)
    )
    problems += target.size_problems(sizes)
    if options.train is not None:
        sizes, training_problems = training_sizes(options.train)
        problems += [*_training_problems(options, target), *training_problems]
    if options.experts not in (None, *EXPERTS):
        problems.append(f"--experts {shown(options.experts)}: expected {', '.join(EXPERTS[:-1])} or {EXPERTS[-1]}")
    if options.jobs is not None and (whole_number(options.jobs) is None or options.jobs < 1):
        problems.append(f"--jobs {shown(options.jobs)}: expected 1 or more")
    stop_tokens, stop_problems = _stop_tokens(options.stop_tokens)
    problems += size_problems + rank_problems + adapter_problems + stop_problems
    raise_all(UsageError, "options that cannot be built", problems)
    available = target.available(device)
    if not available.ready:
        raise BuildError(f"{target.name} for {device} cannot be built here: {available.detail}; {available.fix}")
    archs = _resolve_archs(target, device, options.arch, target_options)
    tuned = _tuned_configs(target, device, archs, options.tuned_configs)
    settings = Settings(
        target=target.name,
        device=device,
        archs=archs,
        dtype=options.dtype or target.dtypes[device][0],
        sizes=sizes,
        stop_tokens=stop_tokens,
        tuned_configs=options.tuned_configs,
        adapter=None if options.adapter is None else Path(options.adapter),
        experts=options.experts,
        target_options=target_options,
    )
    return target, settings, {arch: ConfigChooser(arch, tuned) for arch in archs}


def resolve_device(target: Compiler, options: BuildOptions) -> str:
    """The device to build for. Raises UsageError where the target does not build for the device that was named."""
    if options.device is not None:
        if options.device not in target.dtypes:
            raise UsageError(f"--device {options.device}: target {target.name} builds for {', '.join(target.dtypes)}")
        return options.device
    if options.arch is not None:
        matching = _devices_of(target, options.arch)
        if len(matching) == 1:
            return matching[0]
    with_machine = [device for device in reversed(list(target.dtypes)) if target.current_arch(device) is not None]
    return with_machine[0] if with_machine else next(iter(target.dtypes))


def _devices_of(target: Compiler, arch: str) -> list[str]:
    """The devices that have all of these archs. Raises UsageError where none has."""
    archs = {device: target.archs(device) for device in target.dtypes}
    known = list(dict.fromkeys(name for names in archs.values() for name in names))
    problems = _unknown_archs(target, _names(arch), known)
    problems += [
        f"nothing is compiled here for {device}: {available.detail}; {available.fix}"
        for device, available in ((device, target.available(device)) for device in archs)
        if problems and not available.ready
    ]
    found = [device for device, names in archs.items() if set(_names(arch)) <= set(names)]
    if not problems and not found:
        problems = [f"--arch {arch}: found archs of several devices, expected those of one"]
    raise_all(UsageError, "archs that cannot be built", problems)
    return found


def _unknown_archs(target: Compiler, archs: Sequence[str], known: Sequence[str]) -> list[str]:
    return [f"--arch {name}: {target.name} compiles here for {', '.join(known)}" for name in archs if name not in known]


def _names(arch: str) -> list[str]:
    """The archs of --arch, each once."""
    return list(dict.fromkeys(name.strip() for name in arch.split(",")))


def _with_ranks(sizes: Sizes, options: BuildOptions, target: Compiler, device: str) -> tuple[Sizes, list[str]]:
    """The sizes for the ranks that are wanted, and what is wrong with these."""
    sizes, found = with_ranks(sizes, options.tensor_parallel, bool(options.expert_parallel))
    problem = target.rank_problem(device) if sizes.ranks > 1 else None
    return sizes, found if problem is None else [*found, f"--tensor-parallel {sizes.ranks}: {problem}"]


# Options that an artifact which trains has no use for, by the names of their fields.
_OF_GENERATION = {
    "max_batch": "--max-batch",
    "widths": "--widths",
    "max_context": "--max-context",
    "tensor_parallel": "--tensor-parallel",
    "expert_parallel": "--expert-parallel",
    "prefill_chunks": "--prefill-chunk",
    "stop_tokens": "--stop-token",
    "adapter_slots": "--adapter-slots",
    "adapter_rank": "--adapter-rank",
}


def _training_problems(options: BuildOptions, target: Compiler) -> list[str]:
    """What is wrong with options beside a training step."""
    given = [name for name in _OF_GENERATION if getattr(options, name) != getattr(BuildOptions, name)]
    problems = [f"{_OF_GENERATION[name]}: is for artifacts that generate; leave it out" for name in given]
    if not target.trains:
        problems.append(
            f"--program train-step: target {target.name} compiles no training step; choose another --target"
        )
    return problems


def _stop_tokens(tokens: Any) -> tuple[tuple[int, ...], list[str]]:
    """The given stop tokens, and what is wrong with them. Whether the model has them is checked with the checkpoint."""
    given = () if tokens is None else listed(tokens)
    problems = [f"stop token {shown(t)}: expected a whole number" for t in given if whole_number(t) is None]
    return () if problems else tuple(map(operator.index, given)), problems


def _dtype_problems(target: Compiler, device: str, dtype: str | None) -> list[str]:
    known = target.dtypes[device]
    if dtype is None or dtype in known:
        return []
    return [f"--dtype {dtype}: {target.name} on {device} builds {', '.join(known)}"]


def _resolve_archs(target: Compiler, device: str, arch: str | None, target_options: Any) -> tuple[str, ...]:
    known = target.archs(device)
    archs = tuple(_names(arch)) if arch else target.default_archs(device, target_options)
    if not archs:
        raise UsageError(f"--arch: this machine has no {device} device to build for; choose one of {', '.join(known)}")
    problems = _unknown_archs(target, archs, known)
    if len(archs) > 1 and not target.compiles_many_archs(device):
        problems.append(f"--arch {arch}: {target.name} builds for one arch at a time; build an artifact for each")
    raise_all(BuildError, "archs that cannot be built", problems)
    return archs


def _tuned_configs(
    target: Compiler, device: str, archs: tuple[str, ...], paths: tuple[Path, ...]
) -> tuple[TunedConfigs, ...]:
    """The user's tuned configs, then those that are shipped."""
    if not target.has_kernels(device):
        if paths:
            raise UsageError(
                f"--tuned-configs: {target.name} for {device} has none of the project's kernels; leave it out"
            )
        return ()
    given, problems = [], []
    for path in paths:
        try:
            given.append(read_tuned_configs(path))
        except UsageError as error:
            problems.append(str(error))
    problems += [
        f"--tuned-configs {configs.path}: is for {configs.arch}, expected one of {', '.join(archs)}"
        for configs in given
        if configs.arch not in archs
    ]
    raise_all(UsageError, "tuned configs that this build cannot use", problems)
    return (*given, *shipped_tuned_configs())

"""What the user asks of a build, and what it is resolved to: every default filled in, every value checked."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifact.programs import Sizes
from .errors import BuildError, UsageError, raise_all
from .kernels.kernel import ConfigChooser
from .kernels.registry import shipped_tuned_configs
from .kernels.tuned_configs import TunedConfigs, read_tuned_configs
from .model.adapter_factors import LARGEST_RANK, MOST_ADAPTERS
from .model.config import ModelConfig
from .model.expert_formats import EXPERTS
from .model.kv_cache import sequence_bytes
from .targets import TARGETS
from .targets.base_compiler import Compiler, compiler
from .values import shown, whole_number

MOST_SEQUENCES = 2**12  # of --max-batch
MOST_CACHE_BYTES = 2**43  # more than any machine has
RANKS = (1, 2, 4, 8)  # of --tensor-parallel: what divides the heads of a gpt-oss


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
        return {
            "target": self.target,
            "device": self.device,
            "arch": ",".join(self.archs),
            "dtype": self.dtype,
            "max_batch": self.sizes.max_batch,
            "widths": list(self.sizes.widths),
            "max_context": self.sizes.max_context,
            "tensor_parallel": self.sizes.ranks,
            "expert_parallel": self.sizes.expert_parallel,
            "prefill_chunks": list(self.sizes.prefill_chunks),
            "stop_tokens": list(self.stop_tokens),
            "tuned_configs": [path.name for path in self.tuned_configs],
            "adapter": None if self.adapter is None else self.adapter.resolve().name,
            "adapter_slots": self.sizes.adapter_slots,
            "adapter_rank": self.sizes.adapter_rank,
            "experts": self.experts,
        } | dataclasses.asdict(self.target_options)


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
    sizes, adapter_problems = _with_adapters(sizes, options, target, device)
    problems += target.size_problems(sizes)
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


def resolve_sizes(
    max_batch: int,
    widths: tuple[int, ...] | None,
    max_context: int,
    chunks: tuple[int, ...] | None,
    widths_for: Callable[[int], tuple[int, ...]],
    default_chunks: tuple[int, ...],
) -> tuple[Sizes, list[str]]:
    """The sizes of an artifact, and what is wrong with them. Default chunks are shortened to the context.

    widths_for      the default widths of a largest batch
    default_chunks  the default prefill chunks
    """
    wanted = {
        "--max-batch": (max_batch,),
        "--widths": () if widths is None else _listed(widths),
        "--max-context": (max_context,),
        "--prefill-chunk": _listed(default_chunks if chunks is None else chunks),
    }
    problems = [
        f"{option} {shown(value)}: expected a whole number"
        for option, values in wanted.items()
        for value in values
        if whole_number(value) is None
    ]
    if problems:
        return Sizes((1,), 1, (1,)), problems
    numbers = {option: tuple(map(operator.index, values)) for option, values in wanted.items()}
    (max_batch,), given_widths, (max_context,), given = numbers.values()
    problems = [f"{option} {value}: expected 1 or more" for option in numbers for value in numbers[option] if value < 1]
    if chunks is not None and not given:
        problems.append("--prefill-chunk: found none, expected one or more")
    if max_batch > MOST_SEQUENCES:
        problems.append(f"--max-batch {max_batch}: expected at most {MOST_SEQUENCES}")
    if widths is not None and max(given_widths, default=0) != max_batch:
        found = ",".join(map(str, given_widths)) or "none"
        problems.append(f"--widths {found}: expected --max-batch ({max_batch}) as the largest")
    if chunks is not None and given and max(given) > max_context:
        problems.append(f"--prefill-chunk {max(given)}: expected at most --max-context ({max_context})")
    if problems:
        return Sizes((1,), 1, (1,)), problems
    used = given if chunks is not None else tuple(min(chunk, max_context) for chunk in given)
    used_widths = widths_for(max_batch) if widths is None else given_widths
    return Sizes(tuple(sorted(set(used_widths))), max_context, tuple(sorted(set(used)))), []


def _with_ranks(sizes: Sizes, options: BuildOptions, target: Compiler, device: str) -> tuple[Sizes, list[str]]:
    """The sizes for the ranks that are wanted, and what is wrong with these."""
    sizes, found = with_ranks(sizes, options.tensor_parallel, bool(options.expert_parallel))
    problem = target.rank_problem(device) if sizes.ranks > 1 else None
    return sizes, found if problem is None else [*found, f"--tensor-parallel {sizes.ranks}: {problem}"]


def with_ranks(sizes: Sizes, ranks: Any, by_expert: bool) -> tuple[Sizes, list[str]]:
    """The sizes for so many ranks, and what is wrong with these. Then the sizes are as they were."""
    count = whole_number(ranks)
    if count not in RANKS:
        return sizes, [f"--tensor-parallel {shown(ranks)}: expected {', '.join(map(str, RANKS[:-1]))} or {RANKS[-1]}"]
    if by_expert and count == 1:
        return sizes, ["--expert-parallel: expected --tensor-parallel with 2, 4 or 8 ranks, which divide the experts"]
    return dataclasses.replace(sizes, ranks=count, expert_parallel=by_expert), []


def _with_adapters(sizes: Sizes, options: BuildOptions, target: Compiler, device: str) -> tuple[Sizes, list[str]]:
    """The sizes with the adapter slots that are wanted, and what is wrong with these. Then the sizes are as they
    were."""
    wanted = {
        "--adapter-slots": (options.adapter_slots, MOST_ADAPTERS),
        "--adapter-rank": (options.adapter_rank, LARGEST_RANK),
    }
    numbers = {option: whole_number(value) for option, (value, _) in wanted.items()}
    slots, rank = numbers.values()
    if slots == rank == 0:
        return sizes, []
    problems = [
        f"{option} {shown(value)}: expected 1 to {most}"
        for option, (value, most) in wanted.items()
        if (number := numbers[option]) is None or not 0 <= number <= most
    ]
    if not problems and 0 in (slots, rank):
        given, missing = wanted if rank == 0 else reversed(wanted)
        problems.append(f"{given} {slots or rank}: expected {missing} as well; give both, or neither")
    if sizes.ranks > 1:
        problems.append(
            f"--adapter-slots {shown(slots)}: found --tensor-parallel {sizes.ranks}, expected 1 rank; leave one out"
        )
    if (problem := target.adapter_problem(device)) is not None:
        problems.append(f"--adapter-slots {shown(slots)}: {problem}")
    if problems or slots is None or rank is None:
        return sizes, problems
    return dataclasses.replace(sizes, adapter_slots=slots, adapter_rank=rank), []


def _listed(values: Any) -> tuple[Any, ...]:
    """The values of an option that may be repeated; one that is no list counts as a list of it."""
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)


def _stop_tokens(tokens: Any) -> tuple[tuple[int, ...], list[str]]:
    """The given stop tokens, and what is wrong with them. Whether the model has them is checked with the checkpoint."""
    given = () if tokens is None else _listed(tokens)
    problems = [f"stop token {shown(t)}: expected a whole number" for t in given if whole_number(t) is None]
    return () if problems else tuple(map(operator.index, given)), problems


def context_problems(sizes: Sizes, config: ModelConfig) -> list[str]:
    """What is wrong with the context for a model."""
    limit = config.max_position_embeddings
    if sizes.max_context > limit:
        expected = f"expected at most {limit} (max_position_embeddings of config.json)"
        return [f"--max-context {sizes.max_context}: {expected}"]
    caches = sizes.max_batch * sequence_bytes(config, sizes.max_context, 2)  # two bytes a number, or four
    if caches > MOST_CACHE_BYTES:
        return [
            f"--max-batch {sizes.max_batch} with --max-context {sizes.max_context}: the keys and values take "
            f"{caches / 1e12:.0f} TB or more; expected at most {MOST_CACHE_BYTES / 1e12:.0f} TB"
        ]
    return []


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

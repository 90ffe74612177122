"""checkpoint folder -> artifact folder: the whole pipeline, one step a line in `build`.

The artifact is written into a temporary sibling and renamed when whole, and the manifest is written last:
a build that fails or is killed leaves nothing that loads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import __version__
from .tuning.op_calls import Call, calls
from .checkpoint import Checkpoint, open_checkpoint
from .model.config import ModelConfig
from .errors import BuildError, UsageError, raise_all
from .compiler.export import Input, Program, Shapes, build_model, trace
from .artifact.atomic_folder import check_new_folder, replace_folder
from .compiler.lower import lower, shipped_tables
from .artifact.manifest import (
    FileSpec, Manifest, Part, ProgramSpec, Provenance, TensorSpec, WeightSpec, describe_file, save_manifest, source_hash,
)  # fmt: skip
from .model.decoder import yarn_inv_freq
from .progress import Steps
from .kernels.tuned_configs import CutTable, read_table
from .targets import TARGETS, Plan, Target

WEIGHTS = "weights"
INV_FREQ = "model.rotary_emb.inv_freq"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class BuildOptions:
    """What the user asks of a build. None: the target's dtype, this machine's arch, the checkpoint's stop tokens.

    arch: one, or several with commas between them where the target can. tables: of measured cuts for the kernels, which come
    before those that are shipped.
    """

    target: str
    device: str
    dtype: str | None = None
    arch: str | None = None
    max_batch: int = 1
    max_context: int = 4096
    prefill_chunks: tuple[int, ...] = (128,)
    stop_tokens: tuple[int, ...] | None = None
    tables: tuple[Path, ...] = ()


def build(source: Path, output: Path, options: BuildOptions, steps: Steps | None = None) -> Manifest:
    """Compile the checkpoint at `source` into a new folder `output`; returns the artifact's manifest.

    Raises UsageError, CheckpointError or BuildError; then `output` does not exist.
    """
    steps = steps or Steps()
    target, dtype, archs, tables = _check_options(options)
    check_new_folder(output, UsageError)
    with steps.step("read the checkpoint"):
        checkpoint = open_checkpoint(source)
        stop_tokens = options.stop_tokens or _stop_tokens(source, checkpoint.config)
        _check_sizes(options, stop_tokens, checkpoint.config)
    shapes = Shapes(options.max_batch, options.max_context, tuple(sorted(set(options.prefill_chunks))))
    cut_by: dict[str, list[str]] = {}
    if target.has_kernels(options.device):
        with steps.step("look up how kernels are cut"):
            made = calls(checkpoint.config, shapes, dtype)
            cut_by = {arch: _tables_that_serve(tables, options.tables, arch, made) for arch in archs}
    with replace_folder(output, UsageError) as folder, _threads() as threads:
        with steps.step("write the weights"):
            weights = _write_weights(checkpoint, dtype, folder)
        hashing = _hash(threads, folder, {Path(part.file) for weight in weights.values() for part in weight.parts})
        specs: dict[str, ProgramSpec] = {}
        compiled: list[Path] = []
        for arch in archs:
            plan = Plan(checkpoint.config, shapes, options.device, arch, tables, stop_tokens, weights, folder, steps)
            label = f" for {arch}" if len(archs) > 1 else ""
            with target.compiling(options.device, arch):
                programs = _lowered(plan, dtype, target, specs, label)
                compiled += target.compile(programs, plan)
            if left := list(programs):
                raise BuildError(f"target {target.name} left programs out: {', '.join(p.name for p in left)}")
        extras = _copy_tokenizer(source, folder)
        with steps.step("hash the files"):
            hashing |= _hash(threads, folder, {*compiled, *extras} - set(hashing))
            files = {name.as_posix(): hashing[name].result() for name in sorted(hashing)}
        manifest = Manifest(
            target=target.name,
            device=options.device,
            archs=archs,
            dtype=_name(dtype),
            model=checkpoint.config,
            max_batch=shapes.max_batch,
            max_context=shapes.max_context,
            prefill_chunks=shapes.prefill_chunks,
            stop_tokens=stop_tokens,
            programs=specs if target.runs(options.device) == "programs" else {},
            weights=weights,
            files=files,
            versions=_versions() | target.versions(),
            source=f"{source.resolve().name} (layout {checkpoint.layout.name})",
            provenance=_provenance(source, checkpoint, options, files, cut_by),
        )
        save_manifest(manifest, folder)
    return manifest


def _check_options(options: BuildOptions) -> tuple[Target, torch.dtype, tuple[str, ...], tuple[CutTable, ...]]:
    problems = []
    target = TARGETS.get(options.target)
    if target is None:
        raise UsageError(f"--target {options.target}: expected {', '.join(TARGETS)}")
    dtypes = target.dtypes.get(options.device, ())
    if not dtypes:
        raise UsageError(f"--device {options.device}: target {target.name} builds for {', '.join(target.dtypes)}")
    dtype = options.dtype or dtypes[0]
    if dtype not in dtypes:
        problems.append(f"--dtype {dtype}: {target.name} on {options.device} builds {', '.join(dtypes)}")
    for option, values in {
        "--max-batch": (options.max_batch,),
        "--max-context": (options.max_context,),
        "--prefill-chunk": options.prefill_chunks or (0,),
    }.items():
        problems += [f"{option} {value}: expected 1 or more" for value in values if value < 1]
    if max(options.prefill_chunks, default=1) > options.max_context:
        problems.append(
            f"--prefill-chunk {max(options.prefill_chunks)}: expected at most --max-context "
            f"({options.max_context})"
        )
    raise_all(UsageError, "options that cannot be built", problems)
    available = target.available(options.device)
    if not available.ready:
        raise BuildError(f"{target.name} for {options.device} cannot be built here: {available.detail}; "
                         f"{available.mend}")  # fmt: skip
    known, wanted = target.archs(options.device), options.arch or target.here(options.device)
    if wanted is None:
        raise UsageError(f"--arch: this machine has no {options.device} device to build for; choose one of {', '.join(known)}")
    archs = tuple(dict.fromkeys(wanted.split(",")))
    problems = [f"--arch {arch}: {target.name} compiles here for {', '.join(known)}" for arch in archs if arch not in known]
    if len(archs) > 1 and not target.many_archs(options.device):
        problems.append(f"--arch {wanted}: {target.name} for {options.device} builds for one at a time; build an artifact for each")
    raise_all(BuildError, "archs that cannot be built", problems)
    return target, getattr(torch, dtype), archs, _tables(options, target, archs)


def _tables(options: BuildOptions, target: Target, archs: tuple[str, ...]) -> tuple[CutTable, ...]:
    """The user's tables, then those that are shipped."""
    if not target.has_kernels(options.device):
        if options.tables:
            raise UsageError(f"--table: {target.name} for {options.device} has none of the kernels that tables are for; leave it out")
        return ()
    given, problems = [], []
    for path in options.tables:
        try:
            given.append(read_table(path))
        except UsageError as error:
            problems.append(str(error))
    problems += [f"--table {table.path}: is for {table.arch}, expected one of {', '.join(archs)}"
                 for table in given if table.arch not in archs]  # fmt: skip
    raise_all(UsageError, "tables that this build cannot use", problems)
    return (*given, *shipped_tables())


def _tables_that_serve(tables: tuple[CutTable, ...], given: tuple[Path, ...], arch: str, made: list[Call]) -> list[str]:
    """Labels of those that say how one of the calls is cut, in their order. Raises UsageError for one that was given with nothing
    to say here, and for entries that the kernels do not know."""
    own = [table for table in tables if table.arch == arch]
    known: set[int] = set()
    serving: set[int] = set()
    problems: dict[str, None] = {}
    for call in made:
        found = []
        for index, table in enumerate(own):
            try:
                found += [index] if table.find(call.cut) else []
            except UsageError as error:
                problems[str(error)] = None
        known.update(found)
        serving.update(found[:1])
    problems |= {
        f"--table {table.path}: has no entry for what this build launches; tune with the sizes of the build": None
        for index, table in enumerate(own) if not problems and index not in known and table.path in given
    }  # fmt: skip
    raise_all(UsageError, "tables that do not fit the kernels", problems)
    return [own[index].label for index in sorted(serving)]


def _check_sizes(options: BuildOptions, stop_tokens: tuple[int, ...], config: ModelConfig) -> None:
    problems = [
        f"stop token {token}: expected an id below vocab_size ({config.vocab_size})"
        for token in stop_tokens
        if not 0 <= token < config.vocab_size
    ]
    if options.max_context > config.max_position_embeddings:
        problems.append(
            f"--max-context {options.max_context}: the model has {config.max_position_embeddings} positions "
            "(max_position_embeddings)"
        )
    raise_all(UsageError, "options that do not fit the checkpoint", problems)


def _lowered(
    plan: Plan, dtype: torch.dtype, target: Target, specs: dict[str, ProgramSpec], label: str
) -> Iterator[Program]:
    """Lowered programs, one at a time, so that one graph is in memory; fills `specs` on the way."""
    implementations = target.implementations(plan)
    for name, trace_now in trace(plan.config, plan.shapes, dtype, target.trace_device(plan.device)).items():
        if not target.takes(name):
            continue
        with plan.steps.step(f"export {name}{label}"):
            program = lower(trace_now(), implementations)
        inputs, outputs = (tuple(map(_spec, items)) for items in (program.inputs, program.outputs))
        specs[name] = ProgramSpec(inputs, outputs)
        with plan.steps.step(f"compile {name}{label}"):
            yield program


def _spec(item: Input) -> TensorSpec:
    return TensorSpec(item.name, item.role, item.shape, _name(item.dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_weights(checkpoint: Checkpoint, dtype: torch.dtype, folder: Path) -> dict[str, WeightSpec]:
    """Put the weights beside the code and say where each lies.

    A checkpoint that is packed already is taken as it is: its shards are linked, or copied where the file
    system cannot link. Otherwise every parameter is written anew, a layer at a time.
    """
    (folder / WEIGHTS).mkdir()
    quantizes = any(recipe.quantize for recipe in checkpoint.recipes.values())
    parts = _rewrite(checkpoint, folder) if quantizes else _link(checkpoint, folder)
    derived = "derived.safetensors"
    inv_freq = yarn_inv_freq(checkpoint.config.rope, checkpoint.config.head_dim)
    save_file({INV_FREQ: inv_freq}, folder / derived)
    parts[INV_FREQ] = (Part(derived, INV_FREQ),)
    model = build_model(checkpoint.config, dtype)
    return {
        name: WeightSpec(tuple(value.shape), _name(value.dtype), parts[name])
        for name, value in model.named_parameters()
    }


def _link(checkpoint: Checkpoint, folder: Path) -> dict[str, tuple[Part, ...]]:
    for path in sorted(set(checkpoint.files.values())):
        _link_or_copy(path.resolve(), folder / WEIGHTS / path.name)
    return {
        name: tuple(Part(f"{WEIGHTS}/{checkpoint.files[part.name].name}", part.name) for part in recipe.parts)
        for name, recipe in checkpoint.recipes.items()
    }


def _link_or_copy(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, destination)


def _rewrite(checkpoint: Checkpoint, folder: Path) -> dict[str, tuple[Part, ...]]:
    groups: dict[str, list[str]] = {}
    for name in checkpoint.recipes:
        layer = name.split(".")[2] if name.startswith("model.layers.") else None
        groups.setdefault(f"layer-{int(layer):03}" if layer else name, []).append(name)
    parts: dict[str, tuple[Part, ...]] = {}
    for group, names in groups.items():
        file = f"{WEIGHTS}/{group}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            if checkpoint.recipes[name].quantize:
                tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = checkpoint.quantized(name)
            else:
                tensors[name] = checkpoint.parameter(name)
        save_file(tensors, folder / file)
        parts |= {name: (Part(file, name),) for name in tensors}
    return parts


def _copy_tokenizer(source: Path, folder: Path) -> list[Path]:
    found = [Path(name) for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, folder / name)
    return found


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that hash the weights while programs are compiled. A few, since compiling needs cores too, and since after an error
    each finishes the file that it is at: a shard takes a core about three seconds."""
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _hash(threads: ThreadPoolExecutor, folder: Path, files: set[Path]) -> dict[Path, Future[FileSpec]]:
    return {name: threads.submit(describe_file, folder / name) for name in sorted(files)}


def _provenance(
    source: Path, checkpoint: Checkpoint, options: BuildOptions, files: dict[str, FileSpec], kernels: dict[str, list[str]]
) -> Provenance:
    """Shards that were linked have been hashed as files of the artifact."""
    linked = not any(recipe.quantize for recipe in checkpoint.recipes.values())
    hashed = {path.name: path for path in checkpoint.files.values()}
    specs = {name: files[f"{WEIGHTS}/{name}"] if linked else describe_file(path) for name, path in hashed.items()}
    return Provenance(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        options={
            name: value
            for name, value in (dataclasses.asdict(options) | {"tables": [path.name for path in options.tables]}).items()
            if value not in (None, [])
        },
        source_sha256=source_hash(specs | {"config.json": describe_file(source / "config.json")}),
        kernels=kernels,
    )


def _stop_tokens(source: Path, config: ModelConfig) -> tuple[int, ...]:
    """generation_config.json knows more of them than config.json, where there is one."""
    path = source / "generation_config.json"
    if not path.is_file():
        return config.eos_token_ids
    try:
        value = json.loads(path.read_text()).get("eos_token_id")
        if value is None:
            return config.eos_token_ids
        return tuple(int(token) for token in (value if isinstance(value, list) else [value]))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BuildError(f"{path}: eos_token_id cannot be read ({error})") from None


def _versions() -> dict[str, str]:
    return {"gptoss_export": __version__, "python": platform.python_version(), "torch": torch.__version__}

"""checkpoint folder -> artifact folder. `build` is the whole pipeline, one step after the other.

The artifact is written into a temporary folder beside it, which is renamed when it is complete, and the manifest is
written last. A build that fails or is killed leaves nothing that loads."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from ._version import VERSION
from .artifact.atomic_folder import check_new_folder, replace_folder
from .artifact.files import FileSpec, combined_hash, describe_file
from .artifact.manifest import Manifest, Provenance, save_manifest
from .artifact.programs import programs_of
from .build_options import BuildOptions, Settings, resolve
from .checkpoint import Checkpoint, open_checkpoint
from .compiler.export import TracedProgram, trace
from .compiler.lower import lower
from .compiler.weights import WEIGHTS, weight_file_names, write_weights
from .errors import BuildError, UsageError, raise_all
from .kernels.kernel import ConfigChooser
from .model.config import ModelConfig
from .model.dtypes import torch_dtype
from .progress import Progress
from .targets.base_compiler import CompileJob, Compiler

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def build(source: Path | str, output: Path | str, options: BuildOptions, progress: Progress | None = None) -> Manifest:
    """Compile the checkpoint in folder `source` into the new folder `output`; returns the artifact's manifest.

    Raises UsageError, CheckpointError or BuildError; then `output` does not exist.
    """
    source, output, progress = Path(source), Path(output), progress or Progress()
    compiler, settings, choosers = resolve(options)
    check_new_folder(output, UsageError)
    with progress.stage("read the checkpoint"):
        checkpoint = open_checkpoint(source)
        if options.stop_tokens is None:
            settings = dataclasses.replace(settings, stop_tokens=_stop_tokens(source, checkpoint.config))
        _check_sizes(settings, checkpoint.config)
    progress.facts("build", settings.to_json())
    with replace_folder(output, UsageError) as folder, _threads() as threads:
        lowered = {
            arch: _lower_programs(compiler, settings, chooser, checkpoint.config, progress)
            for arch, chooser in choosers.items()
        }
        _check_tuned_configs(settings, choosers)
        with progress.stage("write the weights"):
            weights = write_weights(checkpoint, settings.dtype, folder, progress)
        hashes = _hash(threads, folder, weight_file_names(weights))
        code: list[Path] = []
        for arch, programs in lowered.items():
            job = CompileJob(
                checkpoint.config,
                settings.sizes,
                settings.device,
                arch,
                settings.target_options,
                settings.stop_tokens,
                weights,
                folder,
                progress,
            )
            code += _compile(compiler, job, programs)
        tokenizer = _copy_tokenizer(source, folder)
        with progress.stage("hash the files"):
            hashes |= _hash(threads, folder, {*code, *tokenizer} - set(hashes))
            files = {name.as_posix(): hashes[name].result() for name in sorted(hashes)}
        first = next(iter(lowered.values()))
        manifest = Manifest(
            target=compiler.name,
            target_options=dataclasses.asdict(settings.target_options),
            device=settings.device,
            archs=settings.archs,
            dtype=settings.dtype,
            model=checkpoint.config,
            sizes=settings.sizes,
            stop_tokens=settings.stop_tokens,
            programs={program.name: program.signature for program in first} if compiler.stores_programs() else {},
            weights=weights,
            files=files,
            versions=_versions() | compiler.versions(),
            source=f"{source.resolve().name} (layout {checkpoint.layout.name})",
            provenance=_provenance(source, checkpoint, settings, files, choosers),
        )
        save_manifest(manifest, folder)
    return manifest


def _lower_programs(
    compiler: Compiler, settings: Settings, chooser: ConfigChooser, config: ModelConfig, progress: Progress
) -> list[TracedProgram]:
    """The programs that the target compiles, traced and lowered for one arch."""
    dtype, device = torch_dtype(settings.dtype), compiler.trace_device(settings.device)
    implementations = compiler.implementations(settings.device, chooser)
    with compiler.environment(settings.device, chooser.arch), progress.stage(f"export for {chooser.arch}"):
        lowered = []
        for program in compiler.programs(programs_of(settings.sizes)):
            progress.update(f"export {program.name} for {chooser.arch}")
            traced = trace(program, config, settings.sizes, dtype, device)
            lowered.append(lower(traced, implementations))
        return lowered


def _compile(compiler: Compiler, job: CompileJob, programs: list[TracedProgram]) -> list[Path]:
    with compiler.environment(job.device, job.arch):
        compilation = compiler.start(job)
        for program in programs:
            with job.progress.stage(f"compile {program.name} for {job.arch}"):
                compilation.compile(program)
        return compilation.finish()


def _check_tuned_configs(settings: Settings, choosers: Mapping[str, ConfigChooser]) -> None:
    """Raise UsageError for a file of --tuned-configs that serves no kernel of this build."""
    used = {configs.path for chooser in choosers.values() for configs in chooser.used}
    raise_all(
        UsageError,
        "tuned configs that do not belong to this build",
        [
            f"--tuned-configs {path}: serves none of the kernels of this build; run gptoss-export tune with its sizes"
            for path in settings.tuned_configs
            if path not in used
        ],
    )


def _check_sizes(settings: Settings, config: ModelConfig) -> None:
    problems = [
        f"stop token {token}: expected an id below vocab_size ({config.vocab_size})"
        for token in settings.stop_tokens
        if not 0 <= token < config.vocab_size
    ]
    if settings.sizes.max_context > config.max_position_embeddings:
        problems.append(
            f"--max-context {settings.sizes.max_context}: expected at most {config.max_position_embeddings} "
            "(max_position_embeddings of config.json)"
        )
    raise_all(UsageError, "options that do not fit the checkpoint", problems)


def _copy_tokenizer(source: Path, folder: Path) -> list[Path]:
    found = [Path(name) for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        copyfile(source / name, folder / name)
    return found


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that hash the weights while programs are compiled. A few only: compiling needs cores too, and after an
    error each thread finishes the file that it reads."""
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _hash(threads: ThreadPoolExecutor, folder: Path, files: set[Path]) -> dict[Path, Future[FileSpec]]:
    return {name: threads.submit(describe_file, folder / name) for name in sorted(files)}


def _provenance(
    source: Path,
    checkpoint: Checkpoint,
    settings: Settings,
    files: Mapping[str, FileSpec],
    choosers: Mapping[str, ConfigChooser],
) -> Provenance:
    shards = {path.name: path for path in checkpoint.files.values()}
    if checkpoint.converts:
        specs = {name: describe_file(path) for name, path in shards.items()}
    else:  # the shards were linked, and have been hashed as files of the artifact
        specs = {name: files[f"{WEIGHTS}/{name}"] for name in shards}
    return Provenance(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        options=settings.to_json(),
        source_sha256=combined_hash(specs | {"config.json": describe_file(source / "config.json")}),
        tuned_configs={
            arch: [configs.label for configs in chooser.used] for arch, chooser in choosers.items() if chooser.chosen
        },
    )


def _stop_tokens(source: Path, config: ModelConfig) -> tuple[int, ...]:
    """The checkpoint's stop tokens: those of generation_config.json where it names some, otherwise those of
    config.json."""
    path = source / "generation_config.json"
    if not path.is_file():
        return config.eos_token_ids
    try:
        value: Any = json.loads(path.read_text()).get("eos_token_id")
        if value is None:
            return config.eos_token_ids
        return tuple(int(token) for token in (value if isinstance(value, list) else [value]))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BuildError(f"{path}: eos_token_id cannot be read ({error})") from None


def _versions() -> dict[str, str]:
    return {"gptoss_export": VERSION, "python": platform.python_version(), "torch": torch.__version__}

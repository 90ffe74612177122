"""checkpoint folder -> artifact folder. `build` is the whole pipeline, one step after the other.

The artifact is written into a temporary folder next to it, which is renamed when it is complete, and the manifest is
written last, but for its signature. A build that fails or is killed leaves nothing that loads."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from ._version import VERSION
from .artifact.atomic_folder import check_new_folder, replace_folder
from .artifact.description import describe_code
from .artifact.files import FileSpec, background_hashes, combined_hash, describe_file
from .artifact.keys import read_private_key
from .artifact.manifest import Manifest, Provenance, save_manifest
from .artifact.programs import programs_of
from .artifact.signature import write_signature
from .build_options import BuildOptions, Settings, context_problems, resolve
from .checkpoint import Checkpoint, open_checkpoint
from .checkpoint.text_files import copy_text_files, default_stop_tokens, text_files
from .compiler.export import TracedProgram, trace
from .compiler.lower import lower
from .compiler.weights import WEIGHTS, weight_file_names, write_weights
from .errors import BuildError, UsageError, raise_all
from .kernels.kernel import ConfigChooser
from .machine_limits import check_threads, reports_limits
from .model.dtypes import torch_dtype
from .progress import Progress
from .targets.base_compiler import CompileJob, Compiler


@reports_limits()
def build(
    source: Path | str,
    output: Path | str,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    sign_key: Path | str | None = None,
) -> Manifest:
    """Compile the checkpoint in folder `source` into the new folder `output`; returns the artifact's manifest.

    options   None: the defaults of `BuildOptions`
    progress  receives the stages of the build and their seconds
    sign_key  file with the private key that signs the artifact; None: it is not signed

    Raises UsageError, CheckpointError, BuildError or MachineError, and OSError where a file cannot be written. Then
    `output` does not exist.
    """
    source, output, options, progress = Path(source), Path(output), options or BuildOptions(), progress or Progress()
    compiler, settings, choosers = resolve(options)
    check_new_folder(output, UsageError)
    check_threads(torch.get_num_threads())
    private_key = None if sign_key is None else read_private_key(sign_key, "--sign-key")
    with progress.stage("read the checkpoint"):
        checkpoint = open_checkpoint(source)
        settings = _complete(settings, options, checkpoint)
        text = text_files(source)
        raise_all(
            BuildError,
            f"{source}: sizes that --target {compiler.name} does not compile for {settings.device}",
            compiler.model_problems(checkpoint.config, settings.device, settings.target_options),
        )
    progress.facts("build", settings.to_json())
    with progress.stage("check the weights"):
        checkpoint.check_finite(torch_dtype(settings.dtype), lambda name: progress.update(f"check {name}"))
    with replace_folder(output, UsageError) as folder, background_hashes(folder) as hashes:
        lowered = {arch: _lower(compiler, settings, choosers[arch], checkpoint, progress) for arch in settings.archs}
        _check_tuned_configs(settings, choosers)
        with progress.stage("write the weights"):
            weights = write_weights(checkpoint, settings.dtype, folder, progress)
        hashes.add(weight_file_names(weights))
        # Every arch has the same programs.
        signatures = {traced.name: traced.signature for traced in lowered[settings.archs[0]]}
        stored_programs = signatures if compiler.stores_programs() else {}
        target_options = dataclasses.asdict(settings.target_options)
        for arch, programs in lowered.items():
            job = CompileJob(
                config=checkpoint.config,
                sizes=settings.sizes,
                device=settings.device,
                arch=arch,
                options=settings.target_options,
                stop_tokens=settings.stop_tokens,
                weights=weights,
                folder=folder,
                description=describe_code(
                    target=compiler.name,
                    target_options=target_options,
                    device=settings.device,
                    arch=arch,
                    dtype=settings.dtype,
                    model=checkpoint.config,
                    sizes=settings.sizes,
                    programs=stored_programs,
                ),
                progress=progress,
            )
            hashes.add(_compile(compiler, job, programs))
        copy_text_files(source, folder, text)
        hashes.add(text)
        with progress.stage("hash the files"):
            files = hashes.wait()
        manifest = Manifest(
            target=compiler.name,
            target_options=target_options,
            device=settings.device,
            archs=settings.archs,
            dtype=settings.dtype,
            model=checkpoint.config,
            sizes=settings.sizes,
            stop_tokens=settings.stop_tokens,
            programs=stored_programs,
            weights=weights,
            files=files,
            versions={"gptoss_export": VERSION, "python": platform.python_version(), "torch": torch.__version__}
            | compiler.versions(),
            source=f"{source.resolve().name} (layout {checkpoint.layout.name})",
            provenance=_provenance(checkpoint, settings, files, choosers),
        )
        written = save_manifest(manifest, folder)
        if private_key is not None:
            write_signature(folder, written, private_key)
    return manifest


def _complete(settings: Settings, options: BuildOptions, checkpoint: Checkpoint) -> Settings:
    """The settings with what the checkpoint says. Raises UsageError for options that do not fit it."""
    config = checkpoint.config
    if options.stop_tokens is None:
        settings = dataclasses.replace(settings, stop_tokens=default_stop_tokens(checkpoint.folder, config))
    problems = [
        f"stop token {token}: expected an id below vocab_size ({config.vocab_size})"
        for token in settings.stop_tokens
        if not 0 <= token < config.vocab_size
    ]
    problems += context_problems(settings.sizes, config)
    raise_all(UsageError, "options that do not fit the checkpoint", problems)
    return settings


def _lower(
    compiler: Compiler, settings: Settings, chooser: ConfigChooser, checkpoint: Checkpoint, progress: Progress
) -> list[TracedProgram]:
    """The programs that the target compiles, traced and lowered for one arch."""
    dtype, device = torch_dtype(settings.dtype), compiler.trace_device(settings.device)
    implementations = compiler.implementations(settings.device, chooser)
    with compiler.environment(settings.device, chooser.arch), progress.stage(f"export for {chooser.arch}"):
        lowered = []
        for program in compiler.programs(programs_of(settings.sizes)):
            progress.update(f"export {program.name} for {chooser.arch}")
            traced = trace(program, checkpoint.config, settings.sizes, dtype, device)
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


def _provenance(
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
        source_sha256=combined_hash(specs | {"config.json": describe_file(checkpoint.folder / "config.json")}),
        tuned_configs={
            arch: [configs.label for configs in chooser.used] for arch, chooser in choosers.items() if chooser.chosen
        },
    )

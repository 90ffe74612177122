"""checkpoint folder -> artifact folder. `build` is the whole pipeline, one step after the other.

The artifact is written into a temporary folder next to it, which is renamed when it is complete, and the manifest is
written last, but for its signature. A build that fails or is killed leaves nothing that loads."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ._version import VERSION
from .artifact.atomic_folder import check_new_folder, replace_folder
from .artifact.description import describe_code
from .artifact.files import FileSpec, background_hashes, combined_hash, describe_file
from .artifact.keys import read_private_key
from .artifact.manifest import Manifest, Provenance, save_manifest, signatures
from .artifact.programs import Program, programs_of
from .artifact.signature import write_signature
from .build_options import BuildOptions, Settings, resolve
from .build_sizes import context_problems
from .checkpoint import Checkpoint, open_checkpoint
from .checkpoint.text_files import copy_text_files, default_stop_tokens, text_files
from .compiler.export import TracedProgram, trace
from .compiler.lower import lower
from .compiler.weights import WEIGHTS, weight_file_names, write_weights
from .compiling import ProgramTask, WorkerSettings, compile_side_by_side, default_jobs
from .errors import BuildError, UsageError, raise_all
from .kernels.kernel import ConfigChooser
from .machine_limits import check_threads, reports_limits
from .model.config import ModelConfig
from .model.dtypes import torch_dtype
from .model.ranks import division_problems, program_configs
from .progress import Progress
from .targets.base_compiler import CompileJob, Compiler, SeparateCompilation
from .temporary_folder import TemporaryFolder


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
        checkpoint = open_checkpoint(source, settings.adapter, settings.experts)
        settings = _complete(compiler, settings, options, checkpoint)
        text = text_files(source)
        raise_all(
            BuildError,
            f"{source}: sizes that --target {compiler.name} does not compile for {settings.device}",
            compiler.model_problems(checkpoint.config, settings.device, settings.target_options),
        )
    progress.facts("build", settings.to_json())
    with progress.stage("check the weights"):
        checkpoint.check_finite(
            torch_dtype(settings.dtype),
            lambda name: progress.update(f"check {name}"),
            compiler.largest_scale(settings.device),
        )
    programs = compiler.programs(programs_of(settings.sizes, settings.device))
    if settings.tuned_configs:
        with progress.stage("check the tuned configs"):
            configs = program_configs(checkpoint.config, settings.sizes.sharing)
            _check_tuned_configs(settings, _trial(compiler, settings, choosers, configs, programs))
    with replace_folder(output, UsageError) as folder, background_hashes(folder) as hashes:
        with progress.stage("write the weights"):
            weights = write_weights(checkpoint, settings.dtype, folder, progress)
        hashes.add(weight_file_names(weights))
        stored = programs if compiler.stores_programs() else ()
        target_options = dataclasses.asdict(settings.target_options)
        jobs = [
            CompileJob(
                config=config,
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
                    model=config,
                    sizes=settings.sizes,
                    programs={item.name: item.signature(config, settings.sizes, settings.dtype) for item in stored},
                ),
                progress=progress,
            )
            for config in program_configs(checkpoint.config, settings.sizes.sharing)
            for arch in settings.archs
        ]
        hashes.add(_compile_all(compiler, settings, choosers, jobs, programs, options.jobs))
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
            programs=signatures(stored, checkpoint.config, settings.sizes, settings.dtype),
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


def _complete(compiler: Compiler, settings: Settings, options: BuildOptions, checkpoint: Checkpoint) -> Settings:
    """The settings with what the checkpoint says. Raises UsageError for options that do not fit it."""
    config = checkpoint.config
    experts = config.expert_format.option
    if options.stop_tokens is None:
        settings = dataclasses.replace(settings, stop_tokens=default_stop_tokens(checkpoint.folder, config))
    problems = [
        f"stop token {token}: expected an id below vocab_size ({config.vocab_size})"
        for token in settings.stop_tokens
        if not 0 <= token < config.vocab_size
    ]
    problems += context_problems(settings.sizes, config)
    if experts not in compiler.expert_formats:
        known = " or ".join(compiler.expert_formats)
        problems.append(f"--experts {experts}: target {compiler.name} compiles for {known}")
    sharing = settings.sizes.sharing
    problems += [f"--tensor-parallel {sharing.ranks}: {problem}" for problem in division_problems(config, sharing)]
    raise_all(UsageError, "options that do not fit the checkpoint", problems)
    return dataclasses.replace(settings, experts=experts)


def _compile_all(
    compiler: Compiler,
    settings: Settings,
    choosers: Mapping[str, ConfigChooser],
    jobs: Sequence[CompileJob],
    programs: Sequence[Program],
    processes: int | None,
) -> list[Path]:
    """Compile every program for every job; the files of the code."""
    programs_of_jobs = _programs_of_jobs(jobs, programs)
    tasks = sum(map(len, programs_of_jobs))
    processes = min(tasks, processes or default_jobs(tasks))
    compilations = [(job, compiler.start(job)) for job in jobs]
    apart = [(job, item) for job, item in compilations if isinstance(item, SeparateCompilation)]
    if processes > 1 and len(apart) == len(compilations):
        return _compile_apart(settings, choosers, apart, programs, processes)
    for (job, compilation), own in zip(compilations, programs_of_jobs, strict=True):
        for program in _lower(compiler, settings, choosers[job.arch], job.config, own, job.progress):
            with (
                compiler.environment(job.device, job.arch),
                job.progress.stage(f"compile {program.name} for {job.label}"),
            ):
                compilation.compile(program)
    _share_programs(apart, programs)
    files = []
    for job, compilation in reversed(compilations):  # the first of an arch has the folders of what all share
        with compiler.environment(job.device, job.arch):
            files += compilation.finish()
    return files


def _programs_of_jobs(jobs: Sequence[CompileJob], programs: Sequence[Program]) -> list[list[Program]]:
    """The programs that are compiled for each job: those of any rank for the first job of an arch alone."""
    first = {job.arch: job for job in reversed(jobs)}
    return [[program for program in programs if not program.of_any_rank or job is first[job.arch]] for job in jobs]


def _share_programs(
    compilations: Sequence[tuple[CompileJob, SeparateCompilation]], programs: Sequence[Program]
) -> None:
    """Give the programs of any rank to all jobs of an arch."""
    first = {job.arch: compilation for job, compilation in reversed(compilations)}
    for job, compilation in compilations:
        if compilation is not first[job.arch]:
            for name in (program.name for program in programs if program.of_any_rank):
                compilation.take(name, first[job.arch].folder(name))


def _compile_apart(
    settings: Settings,
    choosers: Mapping[str, ConfigChooser],
    compilations: Sequence[tuple[CompileJob, SeparateCompilation]],
    programs: Sequence[Program],
    processes: int,
) -> list[Path]:
    """Each program in a process of its own, `processes` of them at a time; the files of the code."""
    progress = compilations[0][0].progress
    tuned = next(iter(choosers.values())).tuned  # the same for all archs
    with TemporaryFolder() as scratch, progress.stage(f"compile in {processes} processes"):
        own = _programs_of_jobs([job for job, _ in compilations], programs)
        tasks = [
            ProgramTask(program, job.config, job.arch, job.label, scratch.path / str(index) / program.name)
            for index, (job, _) in enumerate(compilations)
            for program in own[index]
        ]
        for task in tasks:
            task.folder.mkdir(parents=True)
        given = WorkerSettings(settings, tuple(tuned))
        takers = [compilation for index, (_, compilation) in enumerate(compilations) for _ in own[index]]
        answers = compile_side_by_side(given, tasks, processes, progress.update)
        for task, taker, chosen in zip(tasks, takers, answers, strict=True):
            for call, index in chosen.items():
                choosers[task.arch].chosen[call] = None if index is None else tuned[index]
            taker.take(task.program.name, task.folder)
        _share_programs(compilations, programs)
        return [file for _, compilation in compilations for file in compilation.finish()]


def _lower(
    compiler: Compiler,
    settings: Settings,
    chooser: ConfigChooser,
    config: ModelConfig,
    programs: Sequence[Program],
    progress: Progress,
) -> list[TracedProgram]:
    """The programs, traced and lowered for one arch."""
    dtype, device = torch_dtype(settings.dtype), compiler.trace_device(settings.device)
    implementations = compiler.implementations(settings.device, chooser)
    with compiler.environment(settings.device, chooser.arch), progress.stage(f"export for {chooser.arch}"):
        lowered = []
        for program in programs:
            progress.update(f"export {program.name} for {chooser.arch}")
            traced = trace(program, config, settings.sizes, dtype, device)
            lowered.append(lower(traced, implementations))
        return lowered


def _trial(
    compiler: Compiler,
    settings: Settings,
    choosers: Mapping[str, ConfigChooser],
    configs: Sequence[ModelConfig],
    programs: Sequence[Program],
) -> dict[str, ConfigChooser]:
    """The launch configs that the build will choose, by models of a layer of each kind: that takes seconds."""
    found = {arch: ConfigChooser(arch, chooser.tuned) for arch, chooser in choosers.items()}
    for chooser in found.values():
        for config in configs:
            _lower(compiler, settings, chooser, config.shortest(), programs, Progress())
    return found


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
    # Shards that were linked have been hashed as files of the artifact.
    specs = {name: files.get(f"{WEIGHTS}/{name}") or describe_file(path) for name, path in shards.items()}
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

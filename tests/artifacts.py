"""What tests of several folders share: building artifacts, once for all test processes or without compiling."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock  # which torch depends on

from gptoss_export import BuildOptions, build
from gptoss_export.artifact.manifest import Manifest
from gptoss_export.artifact.programs import Program
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers
from gptoss_export.compiler.export import TracedProgram
from gptoss_export.model.ranks import RankConfig
from gptoss_export.ranks.exchange import NoExchange
from gptoss_export.runtime.weights import load_weights
from gptoss_export.runtime.with_torch.tensors import TorchTensors
from gptoss_export.targets.aoti.compile import AotiCompiler
from gptoss_export.targets.aoti.package import package_name
from gptoss_export.targets.base_compiler import Compilation, CompileJob

SEED = 7
OPTIONS: dict[str, Any] = {"max_batch": 3, "widths": (1, 3), "max_context": 4400, "prefill_chunks": (16, 64), "jobs": 1}
TWO_LAYERS = with_layers(PRESETS["tiny"], 2)  # a sliding layer and a full one: enough to compile every kind of code

# Runs an artifact where nothing is installed that only building or the command line needs.
RUN_ALONE = """
import sys
for name in ("triton", "transformers", "click", "rich", "gptoss_plugins", "tokenizers"):
    sys.modules[name] = None  # as if it were not installed
import gptoss_export
print(gptoss_export.load(sys.argv[1]).generate([1, 2, 3], 5, stop_tokens=()).tokens)
building = ("torch._inductor", "torch._dynamo", "gptoss_export.compiler", "gptoss_export.kernels",
            "gptoss_export.checkpoint", "gptoss_export.building", "gptoss_export.model.decoder")
found = [name for name in sys.modules if name.startswith(building)]
assert not found, found
"""


def compile_artifact(checkpoint: Path, output: Path, **options: Any) -> Path:
    """Build an artifact for CPU. It takes a minute: use the fixture `artifact` where it serves."""
    build(checkpoint, output, BuildOptions("aoti", "cpu", **(OPTIONS | options)))
    return output


def loaded_weights(manifest: Manifest, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of an artifact on the CPU, by name; of several ranks, those of the manifest's rank."""
    config = manifest.model
    places = NoExchange(config.rank, config.ranks).places if isinstance(config, RankConfig) else ()
    with load_weights(manifest, folder, TorchTensors(torch.device("cpu")), places) as loading:
        loading.wait()
    return {name: torch.as_tensor(tensor) for name, tensor in loading.tensors.items()}


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first test process to want it makes for all of them."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    root.mkdir(exist_ok=True)
    with FileLock(root / "lock"):
        if not (root / "made").exists():
            make(root)
            (root / "made").touch()
    return root


class NothingCompiled(Compilation):
    """Takes the programs of a build and writes no code."""

    def __init__(self, job: CompileJob) -> None:
        self.job = job

    def compile(self, program: TracedProgram) -> None:
        """Compiles nothing."""

    def finish(self) -> list[Path]:
        return []


class FakeCode(NothingCompiled):
    """Writes a package of the right name that holds no code."""

    def finish(self) -> list[Path]:
        name = package_name(self.job.arch, self.job.config)
        (self.job.folder / name).write_bytes(b"no code" * 1000)
        return [Path(name)]


def compile_nothing(
    patch: pytest.MonkeyPatch,
    compilation: Callable[[CompileJob], Compilation] = NothingCompiled,
    programs: Collection[str] | None = None,
) -> None:
    """Make builds of this process trace, lower and write everything but code.

    compilation  takes the place of compiling
    programs     names of the programs that are traced; None: all of them
    """

    def start(self: AotiCompiler, job: CompileJob) -> Compilation:
        return compilation(job)

    def chosen(self: AotiCompiler, all_programs: tuple[Program, ...]) -> tuple[Program, ...]:
        return tuple(program for program in all_programs if programs is None or program.name in programs)

    patch.setattr(AotiCompiler, "start", start)
    patch.setattr(AotiCompiler, "programs", chosen)

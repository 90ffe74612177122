"""A compiler that compiles nothing, so that a test can build in a second: the artifact has weights and a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gptoss_export.compiler.export import TracedProgram
from gptoss_export.compiler.lower import Implementations
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.targets import options_class
from gptoss_export.targets.base_compiler import Availability, Compilation, CompileJob, Compiler


class WeightsOnly(Compiler):
    """Takes the name and the options of target aoti. `gpu` is the arch of the machine's GPU, None for no GPU."""

    name = "aoti"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}
    options_class = options_class("aoti")

    def __init__(self, gpu: str | None = None, gpu_archs: tuple[str, ...] = ("sm_80", "sm_90")) -> None:
        self._gpu, self._gpu_archs = gpu, gpu_archs

    def available(self, device: str) -> Availability:
        return Availability(True, "compiles nothing")

    def current_arch(self, device: str) -> str | None:
        return self._gpu if device == "cuda" else "x86_64-AVX2"

    def archs(self, device: str) -> tuple[str, ...]:
        return self._gpu_archs if device == "cuda" else ("x86_64-AVX2",)

    def versions(self) -> dict[str, str]:
        return {}

    def programs(self, all_programs: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def stores_programs(self) -> bool:
        return False

    def implementations(self, device: str, chooser: ConfigChooser) -> Implementations:
        return {}

    def start(self, job: CompileJob) -> Compilation:
        return _Nothing()


class _Nothing(Compilation):
    def compile(self, program: TracedProgram) -> None:
        raise AssertionError(f"{program.name}: this compiler has no programs")

    def finish(self) -> list[Path]:
        return []


def use(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> Callable[[str], Compiler]:
    """Make every build of this process use `compiler`, whatever the target."""

    def found(name: str) -> Compiler:
        return compiler

    monkeypatch.setattr("gptoss_export.build_options.compiler", found)
    return found

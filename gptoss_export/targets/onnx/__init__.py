"""ONNX: one model for onnxruntime and onnxruntime-genai, whose weights are the artifact's safetensors files.

    model.onnx            the decoder, prefill and decode in one; weights are external data, by offset
    genai_config.json     what onnxruntime-genai needs to generate with it

Archs are what may run the model: `onnxruntime` has attention as its own contributed op, `portable` is standard operators
alone (with functions of them), for any runtime. Running needs onnxruntime and numpy: no torch.

Limits: for CPU, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...manifest import Manifest
from ..target import Availability, Plan, Target

if TYPE_CHECKING:
    from ...export import Program
    from ...lower import Implementations

PORTABLE, ONNXRUNTIME = "portable", "onnxruntime"
MODEL = "model.onnx"
# Weights are cast to float32 when the model is loaded, whatever their size: lm_head is beyond onnxruntime's own limit.
SESSION_OPTIONS = {"optimization.constant_folding_max_output_size_in_bytes": str(1 << 40)}
SINCE = "1.24"  # of onnxruntime: before, the window of its attention had one token too many
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # the same module
_INSTALL = "pip install 'gptoss-export[onnx]'"


def facts(max_context: int, arch: str) -> dict[str, str]:
    """What a model says of itself, so that the runner knows it for the one of its manifest."""
    return {"max_context": str(max_context), "arch": arch}


class Onnx(Target):
    name = "onnx"
    compiles = "session"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("float32",)}

    def available(self, device: str) -> Availability:
        exporter = _version("onnx")
        if problems := ([] if exporter else ["onnx: not found"]) + _runtime_problems():
            return Availability(False, "; ".join(problems), _INSTALL)
        found = ", ".join(f"{name} {number}" for name, number in self.versions().items())
        return Availability(True, f"{found}; archs {', '.join(self.archs(device))}")

    def here(self, device: str) -> str | None:
        return ONNXRUNTIME

    def archs(self, device: str) -> tuple[str, ...]:
        return ONNXRUNTIME, PORTABLE

    def versions(self) -> dict[str, str]:
        return {"onnx": version("onnx")} | _runtime()

    def takes(self, program: str) -> bool:
        return program == "decode"  # its ops know nothing of how many tokens a call has

    def implementations(self, device: str) -> Implementations:
        from ...lower import themselves

        return themselves()

    def compile(self, programs: Iterable[Program], plan: Plan) -> list[Path]:
        from .export import export_model
        from .genai import write_genai_config

        for program in programs:
            export_model(program, plan)
        config = write_genai_config(plan)
        return [Path(MODEL), config]

    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        found = []
        if manifest.arch not in self.archs(manifest.device) or manifest.device not in self.dtypes:
            archs = ", ".join(self.archs(manifest.device))
            found.append(f"arch: artifact is for {manifest.arch} on {manifest.device}, this version runs {archs} on cpu")
        if MODEL not in manifest.files:
            found.append(f"files: {MODEL} is not in the manifest; build the artifact again")
        return found + [f"{problem}; {_INSTALL}" for problem in _runtime_problems()]

    def load(self, manifest: Manifest, folder: Path, device: Any) -> Any:
        from .run import load_model

        return load_model(manifest, folder / MODEL)


def _runtime_problems() -> list[str]:
    found = _runtime()
    if not found:
        return ["onnxruntime: not found"]
    return [f"{name}: found {number}, expected {SINCE} or later" for name, number in found.items()
            if tuple(map(int, number.split(".")[:2])) < tuple(map(int, SINCE.split(".")))]  # fmt: skip


def _runtime() -> dict[str, str]:
    """The package that onnxruntime came in, and its version; empty where there is none."""
    return next(({name: found} for name in _RUNTIMES if (found := _version(name)) is not None), {})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

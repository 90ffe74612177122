"""ONNX: one model for onnxruntime and onnxruntime-genai, whose weights are the artifact's safetensors files.

    model.onnx            the decoder, prefill and decode in one; weights are external data, by offset
    genai_config.json     what onnxruntime-genai needs to generate with it

Archs are what may run the model: `onnxruntime` has attention as its own contributed op, `portable` is standard operators
alone (with functions of them), for any runtime. Running needs onnxruntime and numpy: no torch.

Limits: for CPU, in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib.metadata import version
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
_SINCE = (1, 23)  # onnxruntime whose GroupQueryAttention takes sinks, and onnx that checks where external data lies
_INSTALL = "pip install 'gptoss-export[onnx]'"


class Onnx(Target):
    name = "onnx"
    compiles = "session"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("float32",)}

    def available(self, device: str) -> Availability:
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            return Availability(False, f"{' and '.join(missing)} not found", _INSTALL)
        return Availability(True, f"onnx {version('onnx')}, onnxruntime {_version()}; archs {', '.join(self.archs(device))}")

    def here(self, device: str) -> str | None:
        return ONNXRUNTIME

    def archs(self, device: str) -> tuple[str, ...]:
        return ONNXRUNTIME, PORTABLE

    def versions(self) -> dict[str, str]:
        return {"onnx": version("onnx"), "onnxruntime": _version()}

    def takes(self, program: str) -> bool:
        return program == "decode"  # its ops know nothing of how many tokens a call has

    def implementations(self, device: str) -> Implementations:
        from ...lower import themselves

        return themselves()

    def compile(self, programs: Iterable[Program], plan: Plan) -> list[Path]:
        from .export import export_model
        from .genai import write_genai_config

        for program in programs:
            export_model(program, plan, portable=plan.arch == PORTABLE)
        config = write_genai_config(plan, in_place=plan.arch != PORTABLE)
        return [Path(MODEL), config]

    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        found = []
        if manifest.arch not in self.archs(manifest.device) or manifest.device not in self.dtypes:
            archs = ", ".join(self.archs(manifest.device))
            found.append(f"arch: artifact is for {manifest.arch} on {manifest.device}, this version runs {archs} on cpu")
        if MODEL not in manifest.files:
            found.append(f"files: {MODEL} is not in the manifest; build the artifact again")
        if importlib.util.find_spec("onnxruntime") is None:
            found.append(f"onnxruntime: not found; {_INSTALL}")
        elif tuple(map(int, _version().split(".")[:2])) < _SINCE:
            found.append(f"onnxruntime: found {_version()}, expected {'.'.join(map(str, _SINCE))} or later; {_INSTALL}")
        return found

    def load(self, manifest: Manifest, folder: Path, device: Any) -> Any:
        from .run import load_model

        return load_model(manifest, folder / MODEL, in_place=manifest.arch != PORTABLE)


def _version() -> str:
    import onnxruntime

    return onnxruntime.__version__

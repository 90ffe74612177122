"""ONNX: one model for onnxruntime and onnxruntime-genai, whose weights are the artifact's safetensors files.

    model.onnx            the decoder, prefill and decode in one; weights are external data, by offset
    genai_config.json     what onnxruntime-genai needs to generate with it
    probe.onnx            for cuda: whether the experts' kernel is there and reads the weights as they are packed

Archs are what may run the model: `onnxruntime` has attention, and on CUDA the experts, as its own contributed ops; `portable`
is standard operators alone (with functions of them), for any runtime. No build needs a GPU.

For cpu the model is in float32, and running it needs onnxruntime and numpy: no torch. For cuda it is in bfloat16, and needs
onnxruntime-gpu and torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...artifact.manifest import Manifest
from ..target import Availability, Plan, Target

if TYPE_CHECKING:
    import torch

    from ...compiler.export import Program
    from ...compiler.lower import Implementations

PORTABLE, ONNXRUNTIME = "portable", "onnxruntime"
MODEL, PROBE = "model.onnx", "probe.onnx"
LOGITS_FROM, LOGITS_TO = "logits_from", "logits_to"
# Weights are cast to float32 when the model is loaded, whatever their size: lm_head is beyond onnxruntime's own limit.
SESSION_OPTIONS = {"optimization.constant_folding_max_output_size_in_bytes": str(1 << 40)}
# The onnxruntime that is needed, by device. Before 1.24, the window of its attention had one token too many; QMoE with MXFP4
# was executed with 1.31 and none before.
SINCE = {"cpu": "1.24", "cuda": "1.31"}
_FP4 = "fp4-qmoe=1"
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")  # the same module; where both are installed, the one with more providers
_INSTALL = {"cpu": "pip install 'gptoss-export[onnx]'", "cuda": "pip install 'gptoss-export[onnx-cuda]'"}


def facts(max_context: int, arch: str) -> dict[str, str]:
    """What a model says of itself, so that the runner knows it for the one of its manifest."""
    return {"max_context": str(max_context), "arch": arch}


class Onnx(Target):
    name = "onnx"
    dtypes: ClassVar[dict[str, tuple[str, ...]]] = {"cpu": ("float32",), "cuda": ("bfloat16",)}

    def available(self, device: str) -> Availability:
        exporter = _version("onnx")
        if exporter is None:
            return Availability(False, "onnx: not found", _INSTALL["cpu"])
        problems = _runtime_problems(device)
        detail = f"onnx {exporter}; archs {', '.join(self.archs(device))}"
        return Availability(True, detail + (f"; to run it: {'; '.join(problems)}" if problems else ""))

    def runs(self, device: str) -> str:
        return "device_session" if device == "cuda" else "host_session"

    def here(self, device: str) -> str | None:
        return ONNXRUNTIME

    def archs(self, device: str) -> tuple[str, ...]:
        return (ONNXRUNTIME, PORTABLE) if device == "cpu" else (ONNXRUNTIME,)

    def trace_device(self, device: str) -> torch.device:
        import torch

        return torch.device("cpu")  # nothing of the graph depends on it

    def versions(self) -> dict[str, str]:
        return {"onnx": version("onnx")} | _runtime()

    def takes(self, program: str) -> bool:
        return program == "decode"  # its ops know nothing of how many tokens a call has

    def has_kernels(self, device: str) -> bool:
        return False

    def implementations(self, plan: Plan) -> Implementations:
        from ...compiler.lower import themselves

        return themselves()

    def compile(self, programs: Iterable[Program], plan: Plan) -> list[Path]:
        from .cpu import Cpu, Portable
        from .cuda import Cuda
        from .export import export_model
        from .genai import write_genai_config
        from .probe import write_probe

        writer = Cuda if plan.device == "cuda" else Portable if plan.arch == PORTABLE else Cpu
        files = [Path(MODEL), write_genai_config(plan)]
        if writer is Cuda:
            files.append(write_probe(plan.folder, Cuda.ir_version))
        for program in programs:
            files += export_model(program, plan, writer)
        return files

    def problems(self, manifest: Manifest, folder: Path) -> list[str]:
        found, device = [], manifest.device
        if device not in self.dtypes or manifest.arch not in self.archs(device):
            known = " and ".join(f"{', '.join(self.archs(known))} on {known}" for known in self.dtypes)
            found.append(f"arch: artifact is for {manifest.arch} on {device}, this version runs {known}")
        for name in (MODEL, PROBE) if device == "cuda" else (MODEL,):
            if name not in manifest.files:
                found.append(f"files: {name} is not in the manifest; build the artifact again")
        return found + [f"{problem}; {_INSTALL[device]}" for problem in _runtime_problems(device)] + _device_problems(device)

    def load(self, manifest: Manifest, folder: Path, device: Any) -> Any:
        if manifest.device == "cuda":
            from .model_cuda import load_model as load_on_device

            return load_on_device(manifest, folder, device)
        from .model_cpu import load_model

        return load_model(manifest, folder / MODEL)


def _runtime_problems(device: str) -> list[str]:
    found, since = _runtime(), SINCE[device]
    if not found:
        return ["onnxruntime: not found"]
    problems = [f"{name}: found {number}, expected {since} or later" for name, number in found.items()
                if _numbers(number) < _numbers(since)]  # fmt: skip
    return problems or _provider_problems(device)


def _provider_problems(device: str) -> list[str]:
    try:
        import onnxruntime
    except ImportError as error:
        return [f"onnxruntime: cannot be imported ({error})"]
    wanted, found = f"{device.upper()}ExecutionProvider", onnxruntime.get_available_providers()
    if wanted not in found:
        both = all(_version(name) for name in _RUNTIMES)
        hint = f"; {' and '.join(_RUNTIMES)} are one module: pip uninstall both first" if both else ""
        return [f"onnxruntime: has {', '.join(found)}, expected {wanted}{hint}"]
    if device == "cuda" and _FP4 not in onnxruntime.get_build_info():
        return [f"onnxruntime: was built without its MXFP4 experts, expected {_FP4} in its build info"]
    return []


def _device_problems(device: str) -> list[str]:
    if device == "cpu":
        return []
    try:
        import torch
    except ImportError:
        return ["torch: not found, which holds the buffers on a GPU; pip install 'gptoss-export[onnx-cuda]'"]
    return [] if torch.cuda.is_available() else ["device: artifact is for a CUDA GPU, torch finds none here"]


def _runtime() -> dict[str, str]:
    """The package that onnxruntime came in, and its version; empty where there is none."""
    return next(({name: found} for name in _RUNTIMES if (found := _version(name)) is not None), {})


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

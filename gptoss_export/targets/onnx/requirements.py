"""What a machine needs to run a model: onnxruntime, and for cuda torch with a GPU.

The loader refuses an artifact where something is missing. A build needs none of it and only reports it.
"""

from __future__ import annotations

import importlib
import re

from ...compat.versions import installed

# The oldest onnxruntime that runs the models, by device. Before 1.24 the window of its attention was one token too
# long. 1.31 is the oldest in which the experts of CUDA models were run.
SINCE = {"cpu": "1.24", "cuda": "1.31"}
INSTALL = {"cpu": "pip install 'gptoss-export[onnx]'", "cuda": "pip install 'gptoss-export[onnx-cuda]'"}
_EDITIONS = ("onnxruntime-gpu", "onnxruntime")  # two packages of the same module
_FP4_EXPERTS = "fp4-qmoe=1"  # in the build info of an onnxruntime whose QMoE reads MXFP4


def import_problem(module: str) -> str | None:
    """Why a package cannot be imported, None where it can. Tells one that is not installed from one that is broken."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return f"{module}: not installed"
        return f"{module}: installed, but importing it fails ({error})"
    except Exception as error:  # a broken package raises any kind
        return f"{module}: installed, but importing it fails ({type(error).__name__}: {error})"
    return None


def runtime_edition() -> dict[str, str]:
    """The package that onnxruntime came in, with its version; empty where none is installed."""
    return next(({name: found} for name in _EDITIONS if (found := installed(name)) is not None), {})


def runtime_problems(device: str) -> list[str]:
    """Why the installed onnxruntime cannot run a model for `device`."""
    if problem := import_problem("onnxruntime"):
        return [problem]
    import onnxruntime

    if not hasattr(onnxruntime, "InferenceSession"):  # one of two packages of this module was removed
        return [f"onnxruntime: files of it are missing; pip uninstall {' '.join(_EDITIONS)} first"]
    found, since = onnxruntime.__version__, SINCE[device]
    if _release(found) < _release(since):
        return [f"onnxruntime: found {found}, expected {since} or later"]
    wanted, providers = f"{device.upper()}ExecutionProvider", onnxruntime.get_available_providers()
    if wanted not in providers:
        both = all(installed(name) for name in _EDITIONS)
        hint = f"; {' and '.join(_EDITIONS)} are one module: pip uninstall both first" if both else ""
        return [f"onnxruntime: has {', '.join(providers)}, expected {wanted}{hint}"]
    if device == "cuda" and _FP4_EXPERTS not in onnxruntime.get_build_info():
        return [f"onnxruntime: was built without its MXFP4 experts, expected {_FP4_EXPERTS} in its build info"]
    return []


def gpu_problems() -> list[str]:
    """Why torch cannot hold the buffers of a model for cuda."""
    if problem := import_problem("torch"):
        return [f"{problem}; it holds the buffers on a GPU: {INSTALL['cuda']}"]
    import torch

    return [] if torch.cuda.is_available() else ["device: artifact is for a CUDA GPU, torch finds none here"]


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))

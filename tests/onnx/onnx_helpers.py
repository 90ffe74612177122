"""What the tests of the ONNX target share: artifacts, and the inverse of the experts' layout."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from artifacts import made_once
from gptoss_export import BuildOptions, build
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, write_synthetic
from gptoss_export.targets.onnx.model_files import DESCRIPTION
from gptoss_export.targets.onnx.options import Options

# Not "onnx": without the package, that name is the folder of these tests.
pytest.importorskip("onnx.helper", reason="onnx is not installed")
import onnx
from google.protobuf.message import Message

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

KINDS = ("default", "portable")  # of a model for cpu
PROMPT = [(37 * index) % PRESETS["tiny"].vocab_size for index in range(140)]  # past the window, three chunks
CUDA_CONFIG = dataclasses.replace(PRESETS["tiny"], hidden_size=128, intermediate_size=192)  # multiples of 64
CUDA_OPTIONS = BuildOptions("onnx", "cuda", max_batch=3, max_context=4400, prefill_chunks=(16, 64))


def build_onnx(checkpoint: Path, folder: Path, kind: str, max_batch: int = 2, max_context: int = 4352) -> Path:
    """An artifact for cpu of one of the KINDS."""
    options = BuildOptions(
        "onnx",
        "cpu",
        max_batch=max_batch,
        max_context=max_context,
        prefill_chunks=(64,),
        target_options=Options(portable=kind == "portable"),
    )
    build(checkpoint, folder, options)
    return folder


def cpu_artifacts(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An artifact for cpu of each of the KINDS. Nobody changes them."""

    def make(root: Path) -> None:
        for kind in KINDS:
            build_onnx(checkpoint, root / kind, kind)

    root = made_once(tmp_path_factory, "onnx-cpu", make)
    return {kind: root / kind for kind in KINDS}


def cuda_artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of CUDA_CONFIG and its artifact for cuda. Nobody changes them."""

    def make(root: Path) -> None:
        write_synthetic(root / "checkpoint", CUDA_CONFIG, LAYOUTS["hf"], 7, torch.device("cpu"), tokenizer=True)
        build(root / "checkpoint", root / "artifact", CUDA_OPTIONS)

    root = made_once(tmp_path_factory, "onnx-cuda", make)
    return root / "checkpoint", root / "artifact"


def texts_of_this_machine(folder: Path, checkpoint: Path) -> list[str]:
    """Where the files of an artifact name a folder of the building machine, or hold text of the program that made them:
    a doc string, or a property other than the model's description."""
    folders = {Path(__file__).parents[2], Path(torch.__file__).parent.parent, Path(sys.prefix), folder, checkpoint}
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        found += [f"{path.name}: {name}" for name in folders if str(name).encode() in data]
        if path.suffix == ".onnx":
            found += [f"{path.name}: {text!r}" for text in _texts(onnx.load(path, load_external_data=False))]
    return found


def _texts(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        for item in [value] if isinstance(value, (str, bytes, int, float, Message)) else value:
            if field.name == "doc_string":
                yield item
            elif field.name == "metadata_props" and item.key != DESCRIPTION:
                yield item.key
            elif isinstance(item, Message):
                yield from _texts(item)


def unpack(repacked: torch.Tensor) -> torch.Tensor:
    """The inverse of `repack`: uint8 [K, N / 2] of one expert to [N, K / 32, 16]."""
    even, odd = repacked[0::2].T, repacked[1::2].T
    first, second = (even & 15) | (odd << 4), (even >> 4) | (odd & 240)
    return torch.stack((first, second), dim=1).flatten(0, 1).unflatten(1, (-1, 16))

"""The declarations of libtorch's functions are those of torch's headers; what is missing is one clear error."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from headers import wrong_declarations

from gptoss_export import load
from gptoss_export.errors import ArtifactError, MachineError
from gptoss_export.libtorch import graph_capture, interface
from gptoss_export.libtorch import installation as module
from gptoss_export.libtorch.installation import Installation, installation
from gptoss_export.libtorch.interface import LIBTORCH, LIBTORCH_CUDA, NUMBERS, PROGRAM, Functions, Libtorch

HEADERS = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "inductor"


def header(name: str) -> str:
    return (HEADERS / name).read_text(encoding="utf-8")


def test_declarations_are_those_of_the_headers() -> None:
    assert wrong_declarations(LIBTORCH | LIBTORCH_CUDA, header("aoti_torch/c/shim.h")) == []
    assert wrong_declarations(PROGRAM, header("aoti_runtime/interface.h")) == []
    assert wrong_declarations(dict.fromkeys(NUMBERS, ()), header("aoti_torch/c/shim.h")) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("aoti_torch_get_dim", (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32))),
        ("aoti_torch_get_dim", (ctypes.c_void_p,)),
        ("aoti_torch_get_dimension", (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64))),
    ],
)
def test_a_wrong_declaration_is_found(name: str, arguments: tuple[type, ...]) -> None:
    assert wrong_declarations({name: arguments}, header("aoti_torch/c/shim.h")) == [name]


def test_the_installation_is_found_without_importing_it() -> None:
    found = installation()
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda)
    assert found.folder == Path(torch.__file__).parent


def test_dtypes_and_functions() -> None:
    library = Libtorch(installation(), cuda=False)
    assert {library.numbers[f"aoti_torch_dtype_{name}"]: name for name in interface.DTYPES} == library.dtypes
    assert len(library.dtypes) == len(interface.DTYPES)


def test_a_function_that_is_missing() -> None:
    code = ctypes.CDLL(str(installation().library("libtorch_cpu.so")))
    with pytest.raises(MachineError, match=r"torch 2\.99: its library has no aoti_torch_ghost; install"):
        Functions(code, {"aoti_torch_ghost": ()}, "2.99")


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"torch: not installed, expected 2\.11, .*; pip install torch"):
        installation()


@pytest.mark.parametrize("version", ["2.10.0+cu130", "3.0.0"])
def test_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    (tmp_path / "version.py").write_text(
        f"from typing import Optional\n__version__ = {version!r}\ncuda: str = '13.0'\n"
    )
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(MachineError, match=rf"torch: found {version.replace('+', '.')} in .*, expected 2\.11, "):
        installation()


def test_a_torch_without_cuda() -> None:
    found = replace(installation(), cuda=None)
    with pytest.raises(MachineError, match="was built without CUDA, and the artifact is for a GPU"):
        Libtorch(found, cuda=True)


def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libc10.so").write_bytes(b"no library")
    with pytest.raises(MachineError, match=r"libc10\.so: cannot be loaded \(.*\); install torch again"):
        Libtorch(Installation(tmp_path, "2.13.0", None), cuda=False)


def test_a_class_of_graphs_that_is_another_one() -> None:
    library = Libtorch(installation(), cuda=False)
    with pytest.raises(MachineError, match="was loaded without its library for CUDA"):
        graph_capture.GraphMemory(library, 0)
    code = ctypes.CDLL(str(installation().library("libtorch_cpu.so")))
    library.cuda = interface.CudaLibrary(code, library.functions)
    with pytest.raises(MachineError, match=r"has no _ZN2at4cuda9CUDAGraph.*; install another version of torch"):
        graph_capture.GraphMemory(library, 0)


def test_loading_names_what_is_wrong_with_torch(uncompiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_export.targets.aoti.load.sys", type("Sys", (), {"modules": {}}))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match="torch: not installed"):
        load(uncompiled)

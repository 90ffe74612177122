"""The programs that a build calls are tried first. The C++ compiler is the one that CXX names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from gptoss_export.compat.toolchain import toolchain_problem
from gptoss_export.errors import MachineError

NEEDED = ("as", "ld", "objcopy", "openssl", "strip")


def problem(gpu: bool = False, triton_compiles: bool = False) -> str:
    found = toolchain_problem(gpu, triton_compiles)
    return "" if found is None else found[0]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of the programs that a build calls, without a compiler."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_the_compiler_that_cxx_names_counts(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("g++", path="/usr/local/bin:/usr/bin:/bin")
    monkeypatch.delenv("CXX", raising=False)
    assert problem() == "g++: not found; AOTInductor compiles C++"
    monkeypatch.setenv("CXX", str(compiler))
    assert problem() == problem(gpu=True) == ""
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    assert problem() == "CXX=/nonexistent/g++: not found; AOTInductor compiles C++"
    monkeypatch.setenv("CXX", f"ccache {compiler}")  # Inductor takes it for the name of one program
    assert "(CXX must be one program, without arguments)" in problem()
    monkeypatch.setenv("CXX", "")
    assert problem().startswith("CXX=: not found")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 0", "ends without an error and makes no library"),
        ("echo no such option >&2; echo more >&2; exit 1", r"cannot compile a library \(no such option\)"),
        ("exit 1", r"\(it says nothing\)"),
        ('exec /usr/bin/env g++ -static-libstdc++ "$@"', "or statically"),
    ],
)
def test_a_compiler_that_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert re.search(message, problem())


def test_a_compiler_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'fatal error: x.o: No space left on device' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(MachineError, match="No space left on device; free some space there, or set TMPDIR"):
        problem()


@pytest.mark.parametrize("name", ["strip", "openssl", "ld", "objcopy"])
def test_a_program_that_is_missing(tools: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tools / name).unlink()
    found = toolchain_problem(gpu=True, triton_compiles=False)
    assert found is not None and found[0].startswith(f"{name}: not found in PATH")
    assert found[1] == f"apt-get install {'openssl' if name == 'openssl' else 'binutils'}"


def test_triton_needs_a_c_compiler_on_a_gpu(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    monkeypatch.delenv("CC", raising=False)
    assert problem(gpu=True, triton_compiles=True) == "gcc and clang: not found; Triton compiles C"
    monkeypatch.setenv("CC", "/nonexistent/cc")
    assert problem(gpu=True, triton_compiles=True) == "CC=/nonexistent/cc: not found; Triton compiles C"
    monkeypatch.setenv("CC", str(tools / "strip"))
    assert problem(gpu=True, triton_compiles=True).startswith("CXX=/nonexistent/g++")

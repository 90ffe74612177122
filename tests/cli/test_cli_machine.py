"""A machine that has too little of something: one error, exit code 2, and nothing is left behind."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from cli_helpers import invoke
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from artifacts import FakeCode, compile_nothing
from gptoss_export import load
from gptoss_export.artifact.atomic_folder import replace_file
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, write_synthetic
from gptoss_export.cli.errors import reports_errors
from gptoss_export.cli.run import _save
from gptoss_export.compat.toolchain import toolchain_problem
from gptoss_export.errors import BuildError, MachineError, UsageError
from gptoss_export.kernels.tuned_configs import TunedConfigs, write_tuned_configs
from gptoss_export.machine_limits import check_threads, machine_limit, reports_limits, writes

ALLOCATION = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process can become larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def error_on_full_disk(size: int, *arguments: object) -> str:
    """The error of a command that fails since no file may have more than `size` bytes."""
    with files_of_at_most(size):
        done = invoke(*arguments)
    assert done.exit_code == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors of torch": lambda path: safetensors.torch.save_file({"a": torch.zeros(9999)}, path),
    "safetensors of numpy": lambda path: safetensors.numpy.save_file({"a": numpy.zeros(9999)}, path),
    "tokenizers": lambda path: Tokenizer(WordLevel({"a" * 9999: 0}, "a")).save(str(path)),
    "onnx": lambda path: onnx.save(onnx.ModelProto(producer_name="a" * 9999), path),
    "text": lambda path: path.write_text("a" * 9999),
    "bytes": lambda path: path.write_bytes(b"a" * 9999),
    "a copy": lambda path: shutil.copyfile(sys.executable, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_writes_a_full_disk_is_an_oserror_that_names_the_file(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "written"
    with files_of_at_most(1000), pytest.raises(OSError, match=f"File too large: .*'{path}'") as full, writes(path):
        WRITERS[writer](path)
    assert full.value.errno == errno.EFBIG


def test_errors_of_another_kind_stay() -> None:
    for error in (KeyError("x"), ValueError("x (os error)"), OSError("no number")):
        with pytest.raises(type(error)) as raised, writes(Path("x")):
            raise error
        assert raised.value is error


@pytest.mark.parametrize(("layout", "experts"), [("hf", "mxfp4"), ("original", "mxfp4"), ("hf", "bf16")])
def test_a_full_disk_while_a_checkpoint_is_written(tmp_path: Path, layout: str, experts: str) -> None:
    options = ("--preset", "tiny", "--layers", 1, "--layout", layout, "--experts", experts)
    error = error_on_full_disk(1000, "make-checkpoint", tmp_path / "made", *options)
    assert f"File too large: '{tmp_path}/.made-" in error and "model-00001-of-" in error and "ulimit -f" in error
    assert list(tmp_path.iterdir()) == []


class FullFile(io.RawIOBase):
    """A file on a disk that is full."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json"])
def test_small_files_of_a_checkpoint_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opened = io.open

    def on_full_disk(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if str(file).endswith(f"/{name}") and "w" in mode:
            return io.TextIOWrapper(FullFile(), write_through=True)  # type: ignore[type-var]
        return opened(file, mode, *arguments, **options)

    monkeypatch.setattr(io, "open", on_full_disk)
    with pytest.raises(OSError, match=f"No space left on device: '.*/{name}'"):
        write_synthetic(tmp_path / "made", PRESETS["tiny"], LAYOUTS["hf"], 0, torch.device("cpu"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layout", "size", "name"),
    [
        ("hf", 50, "derived.safetensors"),
        ("hf", 8000, "tokenizer.json"),  # copied; the shards are linked
        ("hf-bf16", 5000, "weights/"),  # converted, so that they are written
    ],
)
def test_a_full_disk_while_an_artifact_is_written(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    size: int,
    name: str,
) -> None:
    compile_nothing(monkeypatch, FakeCode, programs=["unembed_1"])
    assert toolchain_problem(gpu=False, triton_compiles=False) is None  # compiles, once for this process
    options = ("--target", "aoti", "--device", "cpu", "--max-context", 64, "--prefill-chunk", 8)
    error = error_on_full_disk(size, "build", checkpoints[layout], "-o", tmp_path / "out", *options)
    assert "File too large" in error and f"{tmp_path}/.out-" in error and name in error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_file_that_was_there(uncompiled: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    assert f"'{page}'" in error_on_full_disk(1000, "inspect", uncompiled, "--html", page)
    with files_of_at_most(50), pytest.raises(OSError, match=f"File too large: '{page}'"):
        write_tuned_configs(TunedConfigs("sm_90", "GPU", {"torch": "2" * 50}, ()), page)
    with files_of_at_most(50), pytest.raises(UsageError, match=rf"--save-logits {page}: cannot be written \(File too"):
        _save([torch.zeros(99)], page)
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    file, link = tmp_path / "file", tmp_path / "link"
    with replace_file(file) as written:
        written.touch(0o600)
        assert not file.exists()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
    file.chmod(0o640)
    link.symlink_to(file)
    with replace_file(link) as written:
        written.write_text("new")
    assert link.is_symlink() and file.read_text() == "new" and file.stat().st_mode & 0o777 == 0o640
    with pytest.raises(KeyError), replace_file(file) as written:
        written.write_text("newer")
        raise KeyError
    assert file.read_text() == "new" and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),  # without a buffer, Python drops what the disk did not take
    [
        (["--help"], "1"),
        (["inspect", "{artifact}", "--json"], "1"),
        (["inspect", "{artifact}", "--json"], ""),
    ],
)
def test_a_full_disk_under_stdout(uncompiled: Path, tmp_path: Path, arguments: list[str], unbuffered: str) -> None:
    command = [sys.executable, "-m", "gptoss_export", *(part.format(artifact=uncompiled) for part in arguments)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))

    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=limit, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: [Errno 27] File too large: 'stdout'; raise the limit")
    assert len(done.stderr.splitlines()) == 1


def test_too_little_memory(tmp_path: Path) -> None:
    """Drawing the 20b's embedding takes 2.3 GB."""
    command = [sys.executable, "-m", "gptoss_export", "make-checkpoint", tmp_path / "made", "--preset", "20b"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread takes addresses
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, env=os.environ | one, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: too little memory (") and "DefaultCPUAllocator" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "too little memory; end other programs"),
        (MemoryError("std::bad_alloc"), r"too little memory \(std::bad_alloc\)"),
        (RuntimeError(ALLOCATION), "too little memory .*9 bytes"),
        (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), "too little memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), r"too little memory \(CUDA"),
        (RuntimeError("g++: fatal error: Killed signal terminated program cc1plus" + 999 * "x"), "too little memory;"),
        (RuntimeError("can't start new thread"), "a thread could not be started"),
        (RuntimeError("c_shim_cpu.h:189:1: fatal error: cannot write PCH file"), "cannot write PCH file; free some"),
        (RuntimeError("g++ x.cpp\nfatal error: x.o: No space left on device"), "No space left on device; free some"),
    ],
)
def test_what_libraries_say_is_one_kind_of_error(error: Exception, message: str) -> None:
    with pytest.raises(MachineError, match=message) as raised, reports_limits():
        raise error
    assert raised.value.__cause__ is error
    with pytest.raises(MachineError, match=message), reports_limits():
        raise BuildError("a program failed") from error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), BuildError("out of memory"), OSError(28, "No space")])
def test_other_errors_are_no_limit_of_the_machine(error: Exception) -> None:
    assert machine_limit(error) is None
    with pytest.raises(type(error)) as raised, reports_limits():
        raise error
    assert raised.value is error


def test_no_memory_for_an_array() -> None:
    with pytest.raises(MachineError, match=r"too little memory \(Unable to allocate"), reports_limits():
        numpy.empty(1 << 60, numpy.uint8)


def test_threads_that_cannot_be_started(uncompiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_threads(3)
    running, start = threading.active_count(), threading.Thread.start

    def third_fails(self: threading.Thread) -> None:
        if threading.active_count() - running == 2:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    check_threads(2)
    with pytest.raises(MachineError, match="a thread could not be started"):
        check_threads(3)
    assert threading.active_count() == running  # all have ended
    running -= 2
    with pytest.raises(MachineError, match="a thread could not be started"):
        load(uncompiled)


def test_a_package_that_cannot_be_loaded_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_errors
    def command() -> None:
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object", name="torch._C")

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: package torch cannot be loaded (libtorch_cpu.so: failed to map segment from shared object); "
        "this command needs it\n"
    )

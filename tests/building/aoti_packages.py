"""Small AOTInductor packages of one program, for tests of the code in them."""

from __future__ import annotations

import dataclasses
import re
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gptoss_plugins
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from artifacts import TWO_LAYERS
from gptoss_export.artifact.files import describe_file
from gptoss_export.artifact.manifest import Manifest
from gptoss_export.artifact.programs import Program, Sizes, Unembed
from gptoss_export.compiler.export import trace
from gptoss_export.compiler.lower import lower
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.model.config import ModelConfig
from gptoss_export.progress import Progress
from gptoss_export.runtime.mapped_files import MappedFiles
from gptoss_export.runtime.tensors import LoadedProgram
from gptoss_export.targets.aoti import cpu_isa
from gptoss_export.targets.aoti.compile import COMPILER
from gptoss_export.targets.aoti.package import package_name, runnable_arch
from gptoss_export.targets.aoti.with_torch import TorchPackage
from gptoss_export.targets.base_compiler import CompileJob
from gptoss_export.targets.gpu import current_gpu_arch

SIZES = Sizes(widths=(1,), max_context=64, prefill_chunks=(16,))


def compile_package(
    folder: Path,
    device: str,
    arch: str,
    dtype: torch.dtype,
    programs: tuple[Program, ...] = (Unembed(1),),
    config: ModelConfig = TWO_LAYERS,
    sizes: Sizes = SIZES,
) -> Path:
    """Compile programs of a model into the new folder `folder`; returns the package."""
    folder.mkdir()
    implementations = COMPILER.implementations(device, ConfigChooser(arch))
    job = CompileJob(config, sizes, device, arch, COMPILER.options_class(), (), {}, folder, "{}", Progress())
    with COMPILER.environment(device, arch):
        compilation = COMPILER.start(job)
        for program in programs:
            traced = trace(program, config, sizes, dtype, COMPILER.trace_device(device))
            compilation.compile(lower(traced, implementations))
        (name,) = compilation.finish()
    return folder / name


def libraries_of(package: Path, folder: Path) -> dict[str, Path]:
    """The library of each program, unpacked into `folder`."""
    found = {}
    with zipfile.ZipFile(package) as held:
        for name in held.namelist():
            if name.endswith(".so"):
                program = Path(name).parent.name
                found[program] = folder / f"{package.stem}-{program}.so"
                found[program].write_bytes(held.read(name))
    return found


def problems_of(package: Path) -> list[str]:
    """Names of files that a package must not hold: weights, and sources. An empty source goes along
    (targets/aoti/compile.py)."""
    sources = (".pkl", ".pickle", ".cpp", ".py")
    with zipfile.ZipFile(package) as held:
        return [
            info.filename
            for info in held.infolist()
            if ("/weights/" in info.filename and info.file_size > 1024)
            or (info.filename.endswith(sources) and info.file_size)
        ]


def folders_of_this_machine(package: Path) -> list[str]:
    """Folders of the building machine that are named in a package."""
    folders = [str(Path(torch.__file__).parent.parent), str(Path(gptoss_plugins.__file__).parent), cache_dir()]
    data = package.read_bytes()
    return [folder for folder in folders if folder.encode() in data]


def symbols(library: Path, kind: str) -> set[str]:
    """Dynamic symbols of a library, by `nm -D <kind>`."""
    done = subprocess.run(["nm", "-D", kind, library], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def device_archs(code: bytes) -> Iterator[int]:
    """The SM number of every cubin: an ELF file for machine 190, whose flags hold it."""
    for match in re.finditer(b"\x7fELF\x02\x01", code):
        start = match.start()
        (machine,) = struct.unpack_from("<H", code, start + 18)
        if machine == 190:
            (flags,) = struct.unpack_from("<I", code, start + 48)
            yield flags >> 8 & 0xFF if code[start + 8] > 7 else flags & 0xFF


def load_package(manifest: Manifest, folder: Path, device: torch.device) -> dict[str, LoadedProgram]:
    """The programs of the package in `folder`, whatever hash the manifest has for it."""
    names = [package_name(arch, manifest.model) for arch in manifest.archs]
    specs = {name: describe_file(folder / name) for name in names}
    manifest = dataclasses.replace(manifest, files=manifest.files | specs)
    arch = runnable_arch(manifest, cpu_isa.current_arch() if device.type == "cpu" else current_gpu_arch())
    assert arch is not None
    return TorchPackage(manifest, folder, arch, tune_process=False).programs(MappedFiles(()))

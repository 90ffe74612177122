"""Stands in for a GPU while code is compiled for it, on a machine that has none (or has another).

    with cross_compile("sm_90"):
        aot_compile(...)

Compiling needs no GPU, but torch, Inductor and Triton ask one for what they could look up. Here they are answered:

    torch.cuda, Inductor's device interface       one device, with the properties in GPUS; no random state, no streams
    Triton's driver                               that device as target; binaries are taken as loaded, launches do nothing
    Inductor's run of the kernels it has made     under fake tensors; of several configurations the first is taken, which
                                                  is Inductor's own first guess. So two builds give the same code.
    CUDA_HOME                                     headers that Triton and nvidia-cuda-cccl bring, and libraries to link
                                                  against that hold nothing but names (linkers drop one that is not needed)
    the device guard of a torch without CUDA      one that does nothing, from torch's own headers; without it such a torch
                                                  cannot even index a fake tensor of a GPU

All of it is put back at the end, and what was cached of the answers is forgotten, at both ends. The names are private to torch
and Triton: versions that this was not tested with are refused.

Limits: what comes of it is looked at for sm_80 and sm_90 (tests/test_cross_build.py), and was run on an H200, for sm_90; for the others
of GPUS it was compiled once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ...compat.replace import add, replace
from ...compat.versions import SUPPORTED, installed, version_problem
from ...errors import BuildError


@dataclass(frozen=True)
class Gpu:
    """What is asked of a GPU while code is compiled for it; the names are those of torch's device properties."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    shared_memory_per_block_optin: int  # bytes
    L2_cache_size: int  # bytes
    max_threads_per_multi_processor: int
    regs_per_multiprocessor: int = 65536
    max_threads_per_block: int = 1024
    warp_size: int = 32

    @property
    def capability(self) -> tuple[int, int]:
        return self.major, self.minor


# CUDA programming guide, technical specifications by compute capability; the products' data sheets.
GPUS = {
    "sm_80": Gpu("NVIDIA A100", 8, 0, 108, 163 << 10, 40 << 20, 2048),
    "sm_86": Gpu("NVIDIA GeForce RTX 3090", 8, 6, 82, 99 << 10, 6 << 20, 1536),
    "sm_89": Gpu("NVIDIA L40S", 8, 9, 142, 99 << 10, 96 << 20, 1536),
    "sm_90": Gpu("NVIDIA H200", 9, 0, 132, 227 << 10, 50 << 20, 2048),
    "sm_100": Gpu("NVIDIA B200", 10, 0, 148, 227 << 10, 126 << 20, 2048),
    "sm_120": Gpu("NVIDIA GeForce RTX 5090", 12, 0, 170, 99 << 10, 96 << 20, 1536),
}

# Where answers about the device are cached.
_REMEMBER = (
    "torch._dynamo.debug_utils", "torch._inductor.codecache", "torch._inductor.runtime.hints", "torch._inductor.utils",
    "torch._subclasses.fake_tensor", "torch.utils._triton", "triton.compiler.compiler",
)  # fmt: skip


def problems() -> list[str]:
    """Why code for a GPU cannot be compiled here."""
    found = []
    found += [problem for package in SUPPORTED if (problem := version_problem(package)) is not None]
    if _headers() is None:
        found.append("CUDA's header nv/target not found; it comes with nvidia-cuda-cccl or a CUDA toolkit")
    return found


@contextmanager
def cross_compile(arch: str) -> Iterator[None]:
    """Compile for `arch`, one of GPUS. Raises BuildError where that cannot be."""
    if arch not in GPUS:
        raise BuildError(f"--arch {arch}: expected one of {', '.join(GPUS)}")
    if found := problems():
        raise BuildError(f"code for a GPU cannot be compiled here: {'; '.join(found)}")
    gpu = GPUS[arch]
    with ExitStack() as stack:
        stack.callback(_forget)
        _answer_torch(stack, gpu)
        _answer_triton(stack, gpu)
        _answer_inductor(stack)
        _answer_compiler(stack)
        _forget()
        yield


def _answer_torch(stack: ExitStack, gpu: Gpu) -> None:
    from torch._dynamo import device_interface
    from torch._subclasses import fake_tensor

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: gpu,
        "get_device_capability": lambda device=None: gpu.capability,
        "get_device_name": lambda device=None: gpu.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0),
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "_lazy_init": lambda: None,
    }
    device_interface.init_device_reg()
    interfaces, known_interfaces = device_interface.device_interfaces, dict(device_interface.device_interfaces)
    stack.callback(interfaces.update, known_interfaces)
    stack.callback(interfaces.clear)
    interface = device_interface.CudaInterface
    interfaces["cuda:0"] = interface
    for name, answer in answers.items():
        replace(stack, torch.cuda, name, answer)
        if (known := name.removeprefix("_")) in vars(interface):
            replace(stack, interface, known, staticmethod(answer))
    replace(stack, interface, "get_raw_stream", staticmethod(lambda device: 0))
    if torch.version.cuda is None:
        replace(stack, torch.version, "cuda", "13.0")
    add(stack, torch._C, "_cuda_getCurrentRawStream", lambda device: 0)
    replace(stack, fake_tensor.FakeTensorMode, "avoid_device_init", True)
    replace(stack, fake_tensor, "init_gpu_context", lambda device: None)
    known_properties = device_interface.caching_worker_device_properties
    before = dict(known_properties)
    known_properties.pop("cuda", None)
    stack.callback(known_properties.update, before)
    stack.callback(known_properties.clear)
    _put_guard(stack)


def _answer_triton(stack: ExitStack, gpu: Gpu) -> None:
    from triton import knobs
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    class Driver(CudaDriver):
        """Knows the device, and launches nothing."""

        def __init__(self) -> None:
            properties = {
                "max_shared_mem": gpu.shared_memory_per_block_optin, "multiprocessor_count": gpu.multi_processor_count,
                "max_num_regs": gpu.regs_per_multiprocessor, "warpSize": gpu.warp_size,
            }  # fmt: skip
            self.utils = SimpleNamespace(
                get_device_properties=lambda device: properties,
                load_binary=lambda name, kernel, shared, device: (0, 0, 0, 0, gpu.max_threads_per_block),
            )
            self.launcher_cls = lambda source, metadata: lambda *arguments, **options: None
            self.get_device_capability = lambda device=None: gpu.capability
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None
            self.get_current_stream = lambda device=None: 0

    stack.enter_context(knobs.compilation.scope())
    knobs.compilation.disable_line_info = True  # or code would hold the paths of its sources
    replace(stack, driver, "_active", Driver())


def _answer_inductor(stack: ExitStack) -> None:
    from torch._inductor import config
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._subclasses.fake_tensor import FakeTensorMode

    # In this process, which has the answers; and constants are not computed on the device.
    stack.enter_context(config.patch({"compile_threads": 1, "joint_graph_constant_folding": False}))
    run = PythonWrapperCodegen.generate_and_run_autotune_block

    def run_under_fakes(self: Any) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True):
            run(self)

    def in_their_order(self: Any, *arguments: Any, **options: Any) -> dict[Any, float]:
        return {launcher: float(place) for place, launcher in enumerate(self.launchers)}

    replace(stack, PythonWrapperCodegen, "generate_and_run_autotune_block", run_under_fakes)
    replace(stack, CachingAutotuner, "benchmark_all_configs", in_their_order)


def _answer_compiler(stack: ExitStack) -> None:
    """What the C++ of a program is compiled and linked with."""
    import triton
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch.utils import cpp_extension

    sources = Path(triton.__file__).parent / "backends" / "nvidia" / "include", _headers()
    key = repr((sources, *map(installed, SUPPORTED)))
    home = Path(cache_dir()) / f"cuda-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not home.exists():  # its path is part of what Inductor names its files by: it stays, and is always the same
        home.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=home.parent))
        (partial / "include").mkdir()
        for entry in sources[0].iterdir():
            (partial / "include" / entry.name).symlink_to(entry)
        if not (partial / "include" / "nv").exists():
            (partial / "include" / "nv").symlink_to(sources[1])
        (partial / "lib64").mkdir()
        names = _declared(sources[0] / "cuda.h", r"\bcu[A-Z]\w+"), _declared(_SHIMS, r"\baoti_torch_\w+"), set()
        for library, symbols in zip(("libcuda.so.1", "libtorch_cuda.so", "libc10_cuda.so"), names, strict=True):
            _compile(partial / "lib64" / library.removesuffix(".1"), _holding(symbols), f"-Wl,-soname,{library}")
        try:
            partial.rename(home)
        except OSError:  # another build was first
            shutil.rmtree(partial)
    replace(stack, cpp_extension, "CUDA_HOME", str(home))


_SHIMS = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "inductor" / "aoti_torch"


def _declared(place: Path, pattern: str) -> set[str]:
    """Names in a header, or in those of a folder."""
    files = sorted(place.rglob("*.h")) if place.is_dir() else [place]
    return {name for file in files for name in re.findall(pattern, file.read_text())}


def _holding(symbols: set[str]) -> str:
    """C++ of a library that has these symbols."""
    lines = "".join(f".globl {name}\n.type {name}, @function\n{name}:\n" for name in sorted(symbols))
    return f'asm(R"(.text\n{lines})");' if lines else ""


_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
static auto& place = c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)];
extern "C" int enter() { if (place.load()) return 0; place.store(&guard); return 1; }
extern "C" void leave() { place.store(nullptr); }
"""


def _put_guard(stack: ExitStack) -> None:
    root = Path(torch.__file__).parent
    file = _folder(stack) / "guard.so"
    _compile(file, _GUARD, "-std=c++20", f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10")
    library = ctypes.CDLL(str(file))
    if library.enter():
        stack.callback(library.leave)


def _compile(file: Path, source: str, *options: str) -> None:
    """A shared library of C++ source."""
    code = file.with_suffix(".cpp")
    code.write_text(source)
    command = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", str(code), "-o", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    code.unlink()
    if done.returncode:
        raise BuildError(f"the C++ compiler failed: {' '.join(command)}\n{done.stderr.strip()}")


def _headers() -> Path | None:
    """The folder nv of CUDA's headers, which Triton does not bring."""
    from torch.utils import cpp_extension

    places = [Path(place) / "nvidia" / "cu13" / "include" for place in sys.path]
    if cpp_extension.CUDA_HOME:
        places.append(Path(cpp_extension.CUDA_HOME) / "include")
    return next((place / "nv" for place in places if (place / "nv" / "target").is_file()), None)


def _forget() -> None:
    """Clear every cache of the modules that remember what a device said."""
    for name in _REMEMBER:
        module = importlib.import_module(name)
        owners = [module, *(value for value in vars(module).values() if isinstance(value, type) and value.__module__ == name)]
        for owner in owners:
            for value in list(vars(owner).values()):
                function = getattr(value, "__func__", value)
                if isinstance(function, functools._lru_cache_wrapper):
                    function.cache_clear()


def _folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gptoss-export-")))

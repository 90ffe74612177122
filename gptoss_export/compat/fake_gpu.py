"""A fake GPU: torch, Inductor and Triton compile for a GPU that the machine does not have.

They ask a device for what they could look up. While `fake_gpu` is active they get these answers:

  torch.cuda and Inductor's device interface    one device with the given properties; no random state, no streams
  Triton's driver                               that device as target; a binary counts as loaded, a launch does nothing
  Inductor's run of the kernels that it made    runs under fake tensors; of several configs it takes the first, which is
                                                Inductor's first guess, so that two builds give the same code
  Inductor's passes that time code              are off (_TIMING_PASSES); one that starts nevertheless is an error
  the device guard of a torch without CUDA      one that does nothing, made from torch's own headers

Everything is restored at the end, and cached answers about the device are dropped at both ends.

Without it, code for a GPU can be compiled only on a machine with that GPU. All names below exist since torch 2.11 and
Triton 3.6, unless their entry says otherwise. The module can go when torch.export compiles for a named GPU by itself.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..errors import BuildError, CompatibilityError
from ..temporary_folder import TemporaryFolder, check_executable
from .cpp import compile_library
from .replace import add, replace


@dataclass(frozen=True)
class GpuProperties:
    """What is asked of a GPU while code is compiled for it. The names are those of torch's device properties."""

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


# Modules that cache answers about the device. Without clearing them a build would use the answers of an earlier one.
_CACHING_MODULES = (
    "torch._dynamo.debug_utils",
    "torch._inductor.codecache",
    "torch._inductor.runtime.hints",
    "torch._inductor.utils",
    "torch._subclasses.fake_tensor",
    "torch.utils._triton",
    "triton.compiler.compiler",
)


# The settings of Inductor with which a pass times code on the GPU, each at the value that times nothing. Most are off
# by default, and an environment variable turns them on. The others are on by default:
#   shape_padding              times a matrix product with and without padding, where a size is no multiple of 8
#   benchmark_epilogue_fusion  times the products that max_autotune made, with and without what follows them
# What `autotune_pointwise` makes is chosen by `benchmark_all_configs`, which is replaced.
_TIMING_PASSES: dict[str, Any] = {
    "b2b_gemm_pass": False,
    "benchmark_combo_kernel": False,
    "benchmark_epilogue_fusion": False,
    "benchmark_fusion": False,
    "combo_kernels": False,
    "coordinate_descent_tuning": False,
    "max_autotune": False,
    "max_autotune_gemm": False,
    "max_autotune_pointwise": False,
    "shape_padding": False,
    "triton.mix_order_reduction_autotune_split_size": False,
    "triton.multi_kernel": 0,
}


@contextmanager
def fake_gpu(gpu: GpuProperties) -> Iterator[None]:
    """torch, Inductor and Triton see one GPU with these properties. Raises CompatibilityError where a name is
    missing."""
    with ExitStack() as stack:
        stack.callback(_clear_caches)
        _answer_device_interfaces(stack)  # first: it saves what torch says of this machine
        _answer_torch_cuda(stack, gpu)
        _answer_fake_tensors(stack)
        _answer_device_guard(stack)
        _answer_triton(stack, gpu)
        _answer_inductor(stack)
        _clear_caches()
        yield


def _answer_torch_cuda(stack: ExitStack, gpu: GpuProperties) -> None:
    """torch.cuda and the copies of its functions in torch._dynamo.device_interface.CudaInterface.

    Without them: torch.cuda raises "no NVIDIA driver" or "not compiled with CUDA" as soon as Inductor asks for a
    device."""
    from torch._dynamo import device_interface

    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: gpu,
        "get_device_capability": lambda device=None: gpu.capability,
        "get_device_name": lambda device=None: gpu.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0),
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),  # Inductor saves it around autotuning
        "set_rng_state": lambda state, device=None: None,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "_exchange_device": lambda device: 0,  # the device context manager enters and leaves by these two
        "_maybe_exchange_device": lambda device: 0,
        "_lazy_init": lambda: None,  # would look for a driver
    }
    interface = device_interface.CudaInterface
    for name, answer in answers.items():
        replace(stack, torch.cuda, name, answer)
        public = name.removeprefix("_")
        if public in vars(interface):
            replace(stack, interface, public, staticmethod(answer))
    replace(stack, interface, "get_raw_stream", staticmethod(lambda device: 0))
    if torch.version.cuda is None:  # a torch without CUDA; Inductor names the CUDA version in its cache keys
        replace(stack, torch.version, "cuda", "13.0")
    # A torch without CUDA lacks this name, and Inductor's generated code imports it.
    add(stack, torch._C, "_cuda_getCurrentRawStream", lambda device: 0)


def _answer_device_interfaces(stack: ExitStack) -> None:
    """The registry of device interfaces, and the properties that Inductor's workers cache.

    Without it: a KeyError for "cuda:0", since the registry was filled when there was no GPU.
    """
    from torch._dynamo import device_interface

    device_interface.init_device_reg()
    interfaces = device_interface.device_interfaces
    known_interfaces = dict(interfaces)
    stack.callback(interfaces.update, known_interfaces)
    stack.callback(interfaces.clear)
    interfaces["cuda:0"] = device_interface.CudaInterface
    properties = device_interface.caching_worker_device_properties
    known_properties = dict(properties)
    properties.pop("cuda", None)
    stack.callback(properties.update, known_properties)
    stack.callback(properties.clear)


def _answer_fake_tensors(stack: ExitStack) -> None:
    """Fake tensors of a GPU are made without starting CUDA. Without it: tracing raises when it makes the first one."""
    from torch._subclasses import fake_tensor

    replace(stack, fake_tensor.FakeTensorMode, "avoid_device_init", True)
    replace(stack, fake_tensor, "init_gpu_context", lambda device: None)


_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
static auto& entry = c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)];
extern "C" int enter() { if (entry.load()) return 0; entry.store(&guard); return 1; }
extern "C" void leave() { entry.store(nullptr); }
"""


def _answer_device_guard(stack: ExitStack) -> None:
    """A device guard for CUDA that does nothing, where torch has none.

    Without it: a torch without CUDA cannot even index a fake tensor of a GPU. c10's registry has no Python interface.
    """
    root = Path(torch.__file__).parent
    folder = stack.enter_context(TemporaryFolder()).path
    check_executable(folder, BuildError)
    options = ("-std=c++20", f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10")
    library = ctypes.CDLL(str(compile_library(folder / "guard.so", _GUARD, *options)))
    if library.enter():
        stack.callback(library.leave)


def _answer_triton(stack: ExitStack, gpu: GpuProperties) -> None:
    """Triton's active driver. Without it: Triton finds no driver and refuses to compile from a kernel's call."""
    from triton import knobs
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    class FakeDriver(CudaDriver):
        """Knows the device and launches nothing."""

        def __init__(self) -> None:
            properties = {
                "max_shared_mem": gpu.shared_memory_per_block_optin,
                "multiprocessor_count": gpu.multi_processor_count,
                "max_num_regs": gpu.regs_per_multiprocessor,
                "warpSize": gpu.warp_size,
            }
            self.utils = SimpleNamespace(
                get_device_properties=lambda device: properties,
                # No module: since Triton 3.8 a collected kernel unloads its module, by the driver that is active then.
                load_binary=lambda name, kernel, shared, device: (None, 0, 0, 0, gpu.max_threads_per_block),
            )
            self.launcher_cls = lambda source, metadata: lambda *arguments, **options: None
            self.get_device_capability = lambda device=None: gpu.capability
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None
            self.get_current_stream = lambda device=None: 0

    stack.enter_context(knobs.compilation.scope())
    knobs.compilation.disable_line_info = True  # or code would hold the paths of its sources
    replace(stack, driver, "_active", FakeDriver())


def _answer_inductor(stack: ExitStack) -> None:
    """Inductor compiles in this process, which has the answers, and times nothing.

    Without it: Inductor's worker processes look for a GPU, constants are computed on it, and the kernels that
    Inductor made are launched to time their configs."""
    from torch._inductor import config
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.runtime.benchmarking import benchmarker
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._subclasses.fake_tensor import FakeTensorMode

    settings = {"compile_threads": 1, "joint_graph_constant_folding": False, **_TIMING_PASSES}
    stack.enter_context(config.patch(settings))
    run = PythonWrapperCodegen.generate_and_run_autotune_block

    def run_under_fakes(self: Any) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True):
            run(self)

    def in_order(self: Any, *arguments: Any, **options: Any) -> dict[Any, float]:
        return {launcher: float(order) for order, launcher in enumerate(self.launchers)}

    replace(stack, PythonWrapperCodegen, "generate_and_run_autotune_block", run_under_fakes)
    replace(stack, CachingAutotuner, "benchmark_all_configs", in_order)

    def refuse(*arguments: Any, **options: Any) -> float:
        raise CompatibilityError(
            f"a pass of Inductor times code (torch {torch.__version__}), which a build without the GPU cannot do; "
            "unset the variables of the environment that start with TORCHINDUCTOR_"
        )

    names = {"benchmark", "benchmark_gpu", *(name for name in dir(benchmarker) if name.startswith("benchmark_gpu"))}
    for name in sorted(names):
        replace(stack, benchmarker, name, refuse)


def _clear_caches() -> None:
    """Clear every lru_cache in the modules that cache answers about the device."""
    for name in _CACHING_MODULES:
        module = importlib.import_module(name)
        classes = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == name]
        for owner in (module, *classes):
            for value in list(vars(owner).values()):
                function = getattr(value, "__func__", value)
                if isinstance(function, functools._lru_cache_wrapper):
                    function.cache_clear()

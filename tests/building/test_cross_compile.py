"""Building for GPUs on a machine without one: what is in the code, what the fake GPU leaves behind, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from aoti_packages import compile_package, device_archs, folders_of_this_machine, libraries_of, problems_of, symbols
from torch._inductor import config
from torch.utils import cpp_extension

from artifacts import TWO_LAYERS, made_once
from gptoss_export import BuildOptions, build
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.artifact.programs import Decode, Sizes, Unembed, programs_of
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.compat import versions
from gptoss_export.compat.pytorch import is_kernel_launch, kernel_of_launch
from gptoss_export.compiler.export import trace
from gptoss_export.compiler.lower import lower
from gptoss_export.errors import BuildError
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.model.ops import OPS
from gptoss_export.targets.aoti import cross_compile
from gptoss_export.targets.aoti.compile import COMPILER
from gptoss_export.targets.aoti.load import LOADER

pytestmark = pytest.mark.skipif(bool(cross_compile.problems()), reason="; ".join(cross_compile.problems()))

ARCHS = ("sm_90", "sm_80")
GPU = torch.cuda.get_device_name() if torch.cuda.is_available() else None
# With sizes that are no multiples of 8, passes of Inductor would time code on the GPU.
CONFIG = dataclasses.replace(TWO_LAYERS, hidden_size=96, vocab_size=517, num_local_experts=5)
SIZES = Sizes(widths=(3,), max_context=64, prefill_chunks=(16,))
# Settings that a variable of the environment turns on, and with which a pass of Inductor times code.
TIMING = {
    "benchmark_fusion": True,
    "coordinate_descent_tuning": True,
    "max_autotune": True,
    "max_autotune_gemm": True,
    "max_autotune_pointwise": True,
    "shape_padding": True,
    "triton.mix_order_reduction_autotune_split_size": True,
    "triton.multi_kernel": 1,
}


@pytest.fixture(scope="module")
def cross_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of two layers for two GPUs."""

    def make(root: Path) -> None:
        write_synthetic(root / "checkpoint", CONFIG, LAYOUTS["hf"], 7, torch.device("cpu"))
        sizes = {"widths": SIZES.widths, "max_context": SIZES.max_context, "prefill_chunks": SIZES.prefill_chunks}
        options = BuildOptions("aoti", "cuda", arch=",".join(ARCHS), max_batch=3, **sizes)
        build(root / "checkpoint", root / "artifact", options)

    return made_once(tmp_path_factory, "cross", make) / "artifact"


@pytest.fixture(scope="module")
def libraries(cross_built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The library of each arch and program."""
    root = tmp_path_factory.mktemp("libraries")
    return {
        (arch, program): library
        for arch in ARCHS
        for program, library in libraries_of(cross_built / f"programs-{arch}.pt2", root).items()
    }


def test_only_the_code_is_multiplied(cross_built: Path) -> None:
    manifest = load_manifest(cross_built)
    assert manifest.archs == ARCHS
    assert manifest.provenance.tuned_configs == {arch: [] for arch in ARCHS}  # none is for the tiny model
    packages = [name for name in manifest.files if name.endswith(".pt2")]
    assert packages == sorted(f"programs-{arch}.pt2" for arch in ARCHS)
    # AOTInductor's own runtime is 2 MB a program, 2.5 MB since torch 2.15.
    assert sum(manifest.files[name].bytes for name in packages) < 36 << 20
    assert [problems_of(cross_built / name) for name in packages] == [[], []]
    assert [folders_of_this_machine(cross_built / name) for name in packages] == [[], []]


def launched_kernels(arch: str) -> set[str]:
    """Names of the kernels that a decode step launches, by the launches that tracing leaves in the graph."""
    chooser = ConfigChooser(arch)
    implementations = {
        name: kernels()[name].bind(OPS[name], chooser, as_launches=True)
        if name in kernels() and implementation != OPS[name].reference
        else implementation
        for name, implementation in COMPILER.implementations("cuda", chooser).items()
    }
    traced = trace(Decode(SIZES.max_batch), CONFIG, SIZES, torch.bfloat16, torch.device("cpu"))
    lowered = lower(traced, implementations)
    launched = [kernel_of_launch(node) for node in lowered.exported.graph.nodes if is_kernel_launch(node)]
    return {getattr(kernel, "fn", kernel).__name__ for kernel in launched}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_of_a_step_is_there_for_the_arch(libraries: dict[tuple[str, str], Path], arch: str) -> None:
    """Every piece of device code is for that arch."""
    names = launched_kernels(arch)
    assert {"_qkv_batch_pdl", "_project_batch_pdl", "_router_pdl", "_group_pdl", "_logits_batch_pdl"} <= names
    assert {"gate_up_many_pdl", "down_many_pdl", "sum_many_pdl"} <= names
    code = libraries[arch, "decode_3"].read_bytes()
    assert [name for name in sorted(names) if name.encode() not in code] == []
    found = list(device_archs(code))
    assert len(found) >= len(names) and set(found) == {int(arch.removeprefix("sm_"))}


def test_nothing_calls_back_and_every_symbol_resolves(libraries: dict[tuple[str, str], Path]) -> None:
    """Against what torch's libraries export and its C shims declare, and CUDA's driver."""
    root = Path(torch.__file__).parent
    known = set()
    for pattern in ("lib/libtorch_cpu.so", "lib/libc10*.so", "lib/libtorch_cuda.so"):
        known |= {name for library in root.glob(pattern) for name in symbols(library, "--defined-only")}
    headers = list(root.glob("include/torch/csrc/inductor/aoti_torch/**/*.h"))
    with cross_compile.cross_compile("sm_90"):
        toolkit = Path(cpp_extension.CUDA_HOME) / "include"
        declared = "".join(path.read_text() for path in (*headers, toolkit / "cuda.h", toolkit / "cuda_runtime_api.h"))
    system = re.compile(r"_ZN?K?S|_ZT|_Zna|_Znw|_Zd|__cxa|__gxx|__|_ITM|GOMP|omp_|_Unwind")
    assert {program for _, program in libraries} == {program.name for program in programs_of(SIZES, "cuda")}
    for (arch, program), library in libraries.items():
        assert "AOTInductorModelContainerCreateWithDevice" in symbols(library, "--defined-only")
        wanted = symbols(library, "--undefined-only")
        assert {"cuLaunchKernel", "cuModuleLoadData"} <= wanted
        assert not [name for name in wanted if "proxy_executor" in name], (arch, program)
        assert b"gptoss::" not in library.read_bytes()
        left = {
            name
            for name in wanted - known
            if not system.match(name) and not re.search(rf"\b{re.escape(name)}\b", declared)
        }
        libc = subprocess.run(["ldd", library], capture_output=True, text=True, check=False).stdout
        for path in re.findall(r"=> (/\S*lib(?:c|m|stdc\+\+|gcc_s|pthread)\.so\S*)", libc):
            left -= symbols(Path(path), "--defined-only")
        assert left == set(), (arch, program)


# Compares everything that a fake GPU replaces before, inside and after. Prints what it left behind.
TRACES = """
import sys
import torch
import torch.utils._triton
from torch._dynamo import device_interface
from torch._higher_order_ops import triton_kernel_wrap
from torch._inductor import config, cpp_builder, cpu_vec_isa
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.runtime.benchmarking import benchmarker
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._subclasses import fake_tensor
from torch.utils import cpp_extension
from triton import knobs
from triton.runtime import driver
from gptoss_export.errors import CompatibilityError
from gptoss_export.targets.aoti.compile import COMPILER

def state():
    owners = (torch.cuda, torch.version, device_interface.CudaInterface, PythonWrapperCodegen, CachingAutotuner,
              fake_tensor, fake_tensor.FakeTensorMode, cpp_extension, cpp_builder, cpu_vec_isa, triton_kernel_wrap,
              knobs.compilation, benchmarker)
    try:
        with fake_tensor.FakeTensorMode():
            torch.empty(1, device="cuda")[:, None]
        guard = None
    except (RuntimeError, AssertionError) as error:
        guard = str(error)
    held = [{name: id(value) for name, value in vars(owner).items() if not name.startswith("cache_")}
            for owner in owners]
    return {
        "replaced": held, "driver": id(driver._active), "threads": config.compile_threads, "guard": guard,
        "config": config.save_config_portable(), "available": torch.cuda.is_available(),
        "stream": "_cuda_getCurrentRawStream" in vars(torch._C), "devices": sorted(device_interface.device_interfaces),
        "properties": sorted(device_interface.caching_worker_device_properties),
        "triton": torch.utils._triton.has_triton(),
    }

state()  # what looking imports
if len(sys.argv) > 1:
    device_interface.init_device_reg()
before = state()
try:
    with COMPILER.environment("cuda", "sm_90"):
        inside = state()
        for time in benchmarker.benchmark, benchmarker.benchmark_gpu:
            try:
                time(lambda: None)
            except CompatibilityError:
                continue
            raise AssertionError(f"{time} takes the time of what no GPU runs")
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
assert inside["available"] and inside["triton"] and "cuda:0" in inside["devices"]
assert inside["driver"] != before["driver"]
after = state()
device_interface.init_device_reg()
if len(sys.argv) == 1:
    before["devices"] = sorted(device_interface.device_interfaces)
    after["devices"] = sorted(device_interface.device_interfaces)
wrong = {name for name in before if before[name] != after[name]}
pairs = enumerate(zip(before["replaced"], after["replaced"]))
print([(i, n) for i, (b, a) in pairs for n in set(b) | set(a) if b.get(n) != a.get(n)])
assert not wrong, wrong
assert "cuda:0" not in after["devices"] or torch.cuda.is_available()
"""


@pytest.mark.parametrize("registry_filled_before", [(), ("yes",)])
def test_the_fake_gpu_leaves_no_trace(registry_filled_before: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", TRACES, *registry_filled_before]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("compiles_anew")
def test_two_builds_are_the_same(tmp_path: Path) -> None:
    """The second one finds what the first left in Inductor's cache, though the environment asks for passes that time
    code."""
    given = ("cuda", "sm_90", torch.bfloat16, (Unembed(64),), CONFIG)
    first = compile_package(tmp_path / "a", *given).read_bytes()
    with config.patch(TIMING):
        second = compile_package(tmp_path / "b", *given).read_bytes()
    assert first == second and len(first) > 100_000


def test_archs_that_cannot_be_built(cross_built: Path, tmp_path: Path) -> None:
    checkpoint = cross_built.parent / "checkpoint"
    with pytest.raises(BuildError, match=r"--arch sm_70: aoti compiles here for sm_80, .*sm_120"):
        build(checkpoint, tmp_path / "a", BuildOptions("aoti", "cuda", arch="sm_90,sm_70"))
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BuildError, match="tensorrt builds for one arch at a time"):
        build(checkpoint, tmp_path / "a", BuildOptions("tensorrt", "cuda", arch="sm_80,sm_89"))


def test_gpus_that_cannot_run_it(cross_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(cross_built)
    capability = SimpleNamespace(value=(10, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability.value)
    (problem,) = LOADER.problems(manifest, cross_built)
    assert "artifact has code for sm_90, sm_80, this machine is sm_100; build with --arch sm_100" in problem
    capability.value = (8, 0)
    assert LOADER.problems(manifest, cross_built) == []


def test_untested_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for a GPU is compiled with many private names of torch."""
    monkeypatch.setitem(versions.SUPPORTED, "torch", ("2.11", "2.12"))
    found = {"torch": "2.99.0", "triton": "3.7.1"}
    monkeypatch.setattr(versions, "installed", lambda package: found[package])
    message = "torch: found 2.99.0, expected 2.11, 2.12"
    assert cross_compile.problems() == [message]
    available = COMPILER.available("cuda")
    assert not available.ready and message in available.detail
    with pytest.raises(BuildError, match=re.escape(message)), cross_compile.cross_compile("sm_90"):
        pass
    with pytest.raises(BuildError, match="--arch sm_70: expected one of sm_80"), cross_compile.cross_compile("sm_70"):
        pass


def test_inspect_says_how_it_was_built(cross_built: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = cli("inspect", cross_built, "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert shown["archs"] == list(ARCHS) and shown["provenance"]["gpu"] == GPU
    assert shown["provenance"]["options"]["arch"] == "sm_90,sm_80" and len(shown["provenance"]["source_sha256"]) == 64


def test_a_gpus_properties_are_those_of_its_arch() -> None:
    for arch, gpu in cross_compile.GPUS.items():
        assert arch == f"sm_{gpu.major}{gpu.minor}" and gpu.capability == (gpu.major, gpu.minor)
        assert {field.name for field in dataclasses.fields(gpu)} >= {"name", "warp_size", "L2_cache_size"}

"""Building for GPUs on a machine without one: what is in the code, what the stand-in leaves behind, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from conftest import made_once
from gptoss_export.build import BuildOptions, build
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, write_random
from gptoss_export.errors import BuildError
from gptoss_export.compiler.export import Shapes, trace
from gptoss_export.compiler.lower import launches, lower
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.model.ops import OPS
from gptoss_export.progress import Steps
from gptoss_export.targets import TARGETS, Plan, stand_in

pytestmark = pytest.mark.skipif(bool(stand_in.problems()), reason="; ".join(stand_in.problems()))

ARCHS = ("sm_90", "sm_80")
GPU = torch.cuda.get_device_name() if torch.cuda.is_available() else None
CONFIG = dataclasses.replace(PRESETS["tiny"], num_hidden_layers=2, layer_types=PRESETS["tiny"].layer_types[:2])
SHAPES = Shapes(max_batch=1, max_context=64, prefill_chunks=(16,))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """For two GPUs."""

    def make(root: Path) -> None:
        write_random(root / "checkpoint", CONFIG, LAYOUTS["hf"], 7, torch.device("cpu"))
        options = BuildOptions("aoti", "cuda", arch=",".join(ARCHS), max_context=64, prefill_chunks=(16,))
        build(root / "checkpoint", root / "artifact", options)

    return made_once(tmp_path_factory, "cross", make) / "artifact"


@pytest.fixture(scope="module")
def libraries(artifact, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """The library of each arch and program."""
    root, found = tmp_path_factory.mktemp("libraries"), {}
    for arch in ARCHS:
        with zipfile.ZipFile(artifact / f"programs-{arch}.pt2") as package:
            for name in package.namelist():
                if name.endswith(".so"):
                    program = Path(name).parent.name
                    found[arch, program] = root / f"{arch}-{program}.so"
                    found[arch, program].write_bytes(package.read(name))
                assert not name.endswith((".cpp", ".py")) or not package.getinfo(name).file_size, name
    return found


def symbols(library: Path, kind: str) -> set[str]:
    done = subprocess.run(["nm", "-D", kind, library], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def test_only_the_code_is_multiplied(artifact):
    manifest = load_manifest(artifact)
    assert manifest.archs == ARCHS
    assert manifest.provenance.kernels == {arch: [] for arch in ARCHS}  # no table knows the tiny model
    packages = [name for name in manifest.files if name.endswith(".pt2")]
    assert packages == sorted(f"programs-{arch}.pt2" for arch in ARCHS)
    assert sum(manifest.files[name].bytes for name in packages) < 20 << 20


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_of_a_step_is_there_for_the_arch(libraries, arch):
    """By name, of those that tracing leaves in the graph; and every piece of device code is for that arch."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    program = lower(trace(CONFIG, SHAPES, torch.bfloat16, torch.device("cpu"))["decode"](), launches(arch, (), *OPS))
    wanted = {
        kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
        for node in program.exported.graph.nodes if "triton_kernel_wrapper" in str(node.target)
    }  # fmt: skip
    names = {(getattr(kernel, "fn", kernel)).__name__ for kernel in wanted}
    assert {"_gate_up_pdl", "_down_pdl", "_qkv_pdl", "_project_pdl", "_router_pdl", "_logits_pdl"} <= names
    code = libraries[arch, "decode"].read_bytes()
    assert [name for name in names if name.encode() not in code] == []
    found = list(device_archs(code))
    assert len(found) >= len(names) and set(found) == {int(arch.removeprefix("sm_"))}


def device_archs(code: bytes):
    """The SM number of every cubin: an ELF file for machine 190, whose flags hold it."""
    for match in re.finditer(b"\x7fELF\x02\x01", code):
        start = match.start()
        (machine,) = struct.unpack_from("<H", code, start + 18)
        if machine == 190:
            (flags,) = struct.unpack_from("<I", code, start + 48)
            yield flags >> 8 & 0xFF if code[start + 8] > 7 else flags & 0xFF


def test_nothing_calls_back_and_every_symbol_resolves(libraries):
    """Against what torch's libraries export and its C shims declare, and CUDA's driver."""
    root = Path(torch.__file__).parent
    known = set()
    for library in (*root.glob("lib/libtorch_cpu.so"), *root.glob("lib/libc10*.so"), *root.glob("lib/libtorch_cuda.so")):
        known |= symbols(library, "--defined-only")
    declared = "".join(path.read_text() for path in root.glob("include/torch/csrc/inductor/aoti_torch/**/*.h"))
    with stand_in.stand_in("sm_90"):
        declared += "".join((Path(cpp_extension.CUDA_HOME) / "include" / name).read_text() for name in ("cuda.h", "cuda_runtime_api.h"))
    system = re.compile(r"_ZN?K?S|_ZT|_Zna|_Znw|_Zd|__cxa|__gxx|__|_ITM|GOMP|omp_|_Unwind")
    for (arch, program), library in libraries.items():
        assert "AOTInductorModelContainerCreateWithDevice" in symbols(library, "--defined-only")
        wanted = symbols(library, "--undefined-only")
        assert {"cuLaunchKernel", "cuModuleLoadData"} <= wanted
        assert not [name for name in wanted if "proxy_executor" in name], (arch, program)
        assert b"gptoss::" not in library.read_bytes()
        left = {name for name in wanted - known if not system.match(name) and not re.search(rf"\b{re.escape(name)}\b", declared)}
        libc = subprocess.run(["ldd", library], capture_output=True, text=True).stdout
        for path in re.findall(r"=> (/\S*lib(?:c|m|stdc\+\+|gcc_s|pthread)\.so\S*)", libc):
            left -= symbols(Path(path), "--defined-only")
        assert left == set(), (arch, program)


TRACES = """
import sys
import torch
import torch.utils._triton
from torch._dynamo import device_interface
from torch._higher_order_ops import triton_kernel_wrap
from torch._inductor import config, cpp_builder, cpu_vec_isa
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._subclasses import fake_tensor
from torch.utils import cpp_extension
from triton import knobs
from triton.runtime import driver
from gptoss_export.targets import TARGETS

def state():
    owners = (torch.cuda, torch.version, device_interface.CudaInterface, PythonWrapperCodegen, CachingAutotuner, fake_tensor,
              fake_tensor.FakeTensorMode, cpp_extension, cpp_builder, cpu_vec_isa, triton_kernel_wrap, knobs.compilation)
    try:
        with fake_tensor.FakeTensorMode():
            torch.empty(1, device="cuda")[:, None]
        guard = None
    except (RuntimeError, AssertionError) as error:
        guard = str(error)
    held = [{name: id(value) for name, value in vars(owner).items() if not name.startswith("cache_")} for owner in owners]
    return {
        "replaced": held, "driver": id(driver._active), "threads": config.compile_threads, "guard": guard,
        "folding": config.joint_graph_constant_folding, "available": torch.cuda.is_available(),
        "stream": "_cuda_getCurrentRawStream" in vars(torch._C), "devices": sorted(device_interface.device_interfaces),
        "properties": sorted(device_interface.caching_worker_device_properties), "triton": torch.utils._triton.has_triton(),
    }

state()  # what looking imports
if len(sys.argv) > 1:
    device_interface.init_device_reg()
before = state()
try:
    with TARGETS["aoti"].compiling("cuda", "sm_90"):
        inside = state()
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
assert inside["available"] and inside["triton"] and "cuda:0" in inside["devices"] and inside["driver"] != before["driver"]
after = state()
device_interface.init_device_reg()
if len(sys.argv) == 1:
    before["devices"] = sorted(device_interface.device_interfaces)
    after["devices"] = sorted(device_interface.device_interfaces)
wrong = {name for name in before if before[name] != after[name]}
print([(i, n) for i, (b, a) in enumerate(zip(before["replaced"], after["replaced"])) for n in set(b) | set(a) if b.get(n) != a.get(n)])
assert not wrong, wrong
assert "cuda:0" not in after["devices"] or torch.cuda.is_available()
"""


@pytest.mark.parametrize("asked_before", [(), ("yes",)])
def test_the_stand_in_leaves_no_trace(asked_before):
    done = subprocess.run([sys.executable, "-c", TRACES, *asked_before], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_builds_are_the_same(tmp_path):
    """The second finds what the first left in Inductor's cache."""
    first, second = (compiled(tmp_path / name, "cuda", "sm_90", torch.bfloat16).read_bytes() for name in "ab")
    assert first == second and len(first) > 100_000


def test_refusals(artifact, cli, tmp_path, monkeypatch):
    with pytest.raises(BuildError, match="--arch sm_70: aoti compiles here for sm_80, .*sm_120"):
        build(artifact.parent / "checkpoint", tmp_path / "a", BuildOptions("aoti", "cuda", arch="sm_90,sm_70"))
    with pytest.raises(BuildError, match="tensorrt for cuda builds for one at a time"):
        build(artifact.parent / "checkpoint", tmp_path / "a", BuildOptions("tensorrt", "cuda", arch="sm_80,sm_89"))
    manifest, target = load_manifest(artifact), TARGETS["aoti"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (10, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    (told,) = target.problems(manifest, artifact)
    assert "artifact has code for sm_90, sm_80, this machine is sm_100; build with --arch sm_100" in told
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert target.problems(manifest, artifact) == []
    monkeypatch.setattr(stand_in, "_version", lambda package: "2.14.0" if package == "torch" else "3.7.1")
    assert "torch 2.14.0: compiling for a GPU was tested with 2.11 and 2.12 and 2.13 only" in target.available("cuda").mend
    with pytest.raises(BuildError, match=r"torch 2\.14\.0"), stand_in.stand_in("sm_90"):
        pass


def test_inspect_says_how_it_was_built(artifact, cli):
    code, out, err = cli("inspect", artifact, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["archs"] == list(ARCHS) and told["provenance"]["gpu"] == GPU
    assert told["provenance"]["options"]["arch"] == "sm_90,sm_80" and len(told["provenance"]["source_sha256"]) == 64


# ---- CPU instructions --------------------------------------------------------------------------------------


@pytest.mark.skipif("AVX2" not in str(TARGETS["aoti"].archs("cpu")), reason="a CPU without AVX2")
def test_a_level_of_instructions(tmp_path):
    """Portable code has no register of a later level, whatever the machine has."""
    library = tmp_path / "library.so"
    with zipfile.ZipFile(compiled(tmp_path / "a", "cpu", "x86_64-DEFAULT", torch.float32)) as package:
        (name,) = [name for name in package.namelist() if name.endswith(".so")]
        library.write_bytes(package.read(name))
    listing = subprocess.run(["objdump", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "%xmm" in listing and "%ymm" not in listing and "%zmm" not in listing


def test_cpu_isa_is_an_option_for_a_cpu(artifact, tmp_path, cli):
    for options in (("--device", "cuda"), ("--arch", "x86_64-AVX2"), ("--portable",)):
        code, _, err = cli("build", artifact.parent / "checkpoint", "-o", tmp_path / "b", "--cpu-isa", "avx2", *options)
        assert code == 2 and "--cpu-isa: is for --device cpu" in err


def compiled(folder: Path, device: str, arch: str, dtype: torch.dtype) -> Path:
    """The package of one small program."""
    target = TARGETS["aoti"]
    folder.mkdir()
    with target.compiling(device, arch):
        program = trace(CONFIG, SHAPES, dtype, target.trace_device(device))["unembed_1"]()
        plan = Plan(CONFIG, SHAPES, device, arch, (), (), {}, folder, Steps())
        (name,) = target.compile([lower(program, target.implementations(plan))], plan)
    return folder / name

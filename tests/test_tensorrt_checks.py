"""What a schedule may say, how loading and running refuse, and which TensorRT is taken: no TensorRT, no GPU."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import json
import re
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

from gptoss_export.errors import ArtifactError, BuildError, RunError
from gptoss_export.artifact.manifest import FileSpec, ProgramSpec, TensorSpec
from gptoss_export.targets import TARGETS
from gptoss_export.targets.tensorrt.compile import flavour as flavours
from gptoss_export.targets.tensorrt.check import binding_violations
from gptoss_export.targets.tensorrt.contexts import CACHE, Contexts
from gptoss_export.targets.tensorrt.kernel import Kernel
from gptoss_export.targets.tensorrt.run import _enqueue
from gptoss_export.targets.tensorrt.schedule import (
    ARENA, INPUT, OUTPUT, EngineStep, KernelStep, PluginSpec, ProgramSchedule, Reference, Schedule, load_schedule,
    save_schedule,
)  # fmt: skip

CPU = torch.device("cpu")

# ---- schedules ---------------------------------------------------------------------------------------------

FILES = ("schedule.json", "engines/e.engine", "plugins/k-1.cubin")
MANIFEST = SimpleNamespace(
    programs={"decode": ProgramSpec(
        (TensorSpec("tokens", "data", (4,), "int64"), TensorSpec("k_cache.0", "cache", (8, 8), "bfloat16"),
         TensorSpec("w", "weight", (8, 8), "bfloat16")),
        (TensorSpec("logits", "data", (2, 8), "float32"),),
    )},
    files={name: FileSpec(1, "") for name in FILES},
)  # fmt: skip
PLUGIN = PluginSpec("_k", ("x", "cache"), ("cache", "out"), (32, 128, 128, 512), (2, 1, 1), 128, 0)
SCHEDULE = Schedule(
    {"e": "decode: all of it"},
    {"k-1": PLUGIN},
    {"decode": ProgramSchedule(1024, (
        EngineStep("e", (Reference(INPUT, 0), Reference(INPUT, 2)), (Reference(ARENA, 256),)),
        KernelStep("k-1", (Reference(ARENA, 256), Reference(INPUT, 1), Reference(INPUT, 1), Reference(ARENA, 512))),
        EngineStep("e", (Reference(INPUT, 0), Reference(INPUT, 2)), (Reference(OUTPUT, 0),)),
    ))},
)  # fmt: skip


def _load(data: dict, folder) -> Schedule:
    (folder / "schedule.json").write_text(json.dumps(data))
    return load_schedule(folder, MANIFEST)


def test_a_schedule_is_read_back(tmp_path):
    save_schedule(SCHEDULE, tmp_path)
    assert load_schedule(tmp_path, MANIFEST) == SCHEDULE


def _steps(data: dict) -> list[dict]:
    return data["programs"]["decode"]["steps"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.clear(), "malformed"),
        (lambda d: d["programs"].update(ghost=d["programs"]["decode"]), "programs: found decode, ghost, expected decode"),
        (lambda d: d["programs"].clear(), "programs: found , expected decode"),
        (lambda d: d["programs"]["decode"].update(arena=-1), "arena is -1"),
        (lambda d: d["programs"]["decode"].update(arena=True), "arena is True"),
        (lambda d: d["programs"]["decode"].update(arena="1"), "arena is '1'"),
        (lambda d: d["programs"]["decode"].update(arena=1000), "step 1: 512 bytes at 512 are outside of the arena of 1000"),
        (lambda d: d["programs"]["decode"].update(arena=256), "step 0: 1 bytes at 256 are outside of the arena of 256"),
        (lambda d: _steps(d)[1]["arguments"][0].update(value=272), "arena offset 272, expected a multiple of 256"),
        (lambda d: _steps(d)[0]["inputs"][0].update(value=3), "input 3: the program has 3"),
        (lambda d: _steps(d)[0]["inputs"][0].update(value=-1), "'input' -1, expected"),
        (lambda d: _steps(d)[0]["inputs"][0].update(value=1.0), "'input' 1.0, expected"),
        (lambda d: _steps(d)[0]["inputs"][0].update(place="attic"), "'attic' 0, expected input, arena, output"),
        (lambda d: _steps(d)[2]["outputs"][0].update(value=1), "output 1: the program has 1"),
        (lambda d: _steps(d)[2]["outputs"][0].update(place="input"), "writes input tokens, which is a data"),
        (lambda d: _steps(d)[1]["arguments"][2].update(value=2), "writes input w, which is a weight"),
        (lambda d: _steps(d)[1]["arguments"].pop(), "k-1 is given 3 arguments, it takes 4"),
        (lambda d: _steps(d)[1].update(plugin="ghost"), "unknown plugin 'ghost'"),
        (lambda d: _steps(d)[0].update(engine="ghost"), "unknown engine 'ghost'"),
        (lambda d: d["plugins"]["k-1"].update(bytes=[32, 129, 129, 512]), r"input 1 \(k_cache.0\) has 128 bytes, 129 are"),
        (lambda d: d["plugins"]["k-1"].update(bytes=[32]), r"k-1: bytes are \(32,\)"),
        (lambda d: d["plugins"]["k-1"].update(bytes=[32, -1, 1, 1]), "k-1: bytes are"),
        (lambda d: d["plugins"]["k-1"].update(grid=[1, 1]), r"grid is \(1, 1\)"),
        (lambda d: d["plugins"]["k-1"].update(grid=[1, 1, 65536]), "grid is"),
        (lambda d: d["plugins"]["k-1"].update(grid=[0, 1, 1]), "grid is"),
        (lambda d: d["plugins"]["k-1"].update(threads=2048), "threads is 2048, expected 1 to 1024"),
        (lambda d: d["plugins"]["k-1"].update(shared=1 << 20), "shared is 1048576"),
        (lambda d: d["plugins"]["k-1"].update(function=7), "function is 7"),
        (lambda d: d["plugins"]["k-1"].pop("bytes"), "malformed .KeyError: 'bytes'"),
        (lambda d: d["plugins"].update({"../k": d["plugins"]["k-1"]}), "plugin '../k': expected a plain file name"),
        (lambda d: d["engines"].update({"a/b": ""}), "engine 'a/b': expected a plain file name"),
        (lambda d: d["engines"].update({"f": ""}), "engines/f.engine: not among the manifest's files"),
        (lambda d: d["engines"].update({"e": 1}), "engine e: 1, expected a string"),
        (lambda d: d["plugins"].update({"k-2": d["plugins"]["k-1"]}), "plugins/k-2.cubin: not among the manifest's files"),
    ],
)  # fmt: skip
def test_a_schedule_that_no_build_writes(tmp_path, change, message):
    data = dataclasses.asdict(copy.deepcopy(SCHEDULE))
    data = json.loads(json.dumps(data))
    change(data)
    with pytest.raises(ArtifactError, match=message) as caught:
        _load(data, tmp_path)
    assert "schedule.json" in str(caught.value)


class _Engine:
    """What an engine says of its tensors: name -> (shape, dtype)."""

    device_memory_size_v2 = 64

    def __init__(self, tensors):
        self._tensors = tensors
        self.num_io_tensors = len(tensors)

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_shape(self, name):
        return self._tensors[name][0]

    def get_tensor_dtype(self, name):
        return self._tensors[name][1]

    def get_tensor_mode(self, name):
        return SimpleNamespace(name="INPUT" if name.startswith("in") else "OUTPUT")

    def create_runtime_config(self):
        return SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None, set_runtime_cache=lambda cache: True,
            create_runtime_cache=lambda: _Cache(),
        )  # fmt: skip

    def create_execution_context(self, config):
        return self._tensors.get("context", SimpleNamespace(set_device_memory=lambda address, size: None))


class _Cache:
    def deserialize(self, blob):
        return blob == b"of this GPU"

    def serialize(self):
        return b"compiled"


TENSORS = {"in0": ((4,), torch.int64), "in1": ((8, 8), torch.bfloat16), "out0": ((2, 8), torch.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"in1": ((9, 8), torch.bfloat16)}, r"in1: input 2 \(w\) has 128 bytes, 144 are"),
        ({"out0": ((3, 8), torch.float32)}, r"step 2: engines/e.engine: out0: output 0 \(logits\) has 64 bytes, 96 are"),
        ({"out0": ((2, 128), torch.float32)}, "step 0: .*out0: 1024 bytes at 256 are outside of the arena of 1024"),
        ({"in2": ((1,), torch.int64)}, "has tensors in0, in1, in2, out0, the schedule binds in0, in1, out0"),
        ({"in0": ((-1,), torch.int64)}, r"in0 has shape \[-1\], expected a static one"),
    ],
)
def test_engines_are_held_against_the_schedule(change, message):
    problems = "\n".join(binding_violations(SCHEDULE, MANIFEST, {"e": _Engine(TENSORS | change)}))
    assert re.search(message, problems) if message else not problems, problems


# ---- loading and running -----------------------------------------------------------------------------------


@pytest.fixture
def no_cuda(monkeypatch):
    """torch's calls that need a GPU do nothing; the devices that were made current are noted."""
    seen = []

    def current(device):
        seen.append(device)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    return seen


def _flavour(engine, name=flavours.RTX):
    class Logger:
        ERROR = 0

        def __init__(self, severity):
            pass

    runtime = SimpleNamespace(deserialize_cuda_engine=lambda blob: engine)
    strategies = SimpleNamespace(USER_MANAGED=1)
    module = SimpleNamespace(Logger=Logger, Runtime=lambda logger: runtime, ExecutionContextAllocationStrategy=strategies)
    return flavours.Flavour(name, "1.6.1.120", module)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "e.engine").write_bytes(b"engine")
    return tmp_path


def test_contexts_tell_whether_the_cache_was_taken(no_cuda, folder):
    (folder / CACHE).write_bytes(b"of this GPU")  # not read from the disk: what the manifest names is handed over
    for stored, taken in (None, None), (b"of this GPU", True), (b"of another GPU", False):
        assert Contexts(_flavour(_Engine(TENSORS)), folder, ["e"], CPU, stored).taken is taken


def test_compiling_needs_no_scratch_memory(no_cuda, folder, monkeypatch):
    contexts = Contexts(_flavour(_Engine(TENSORS)), folder, ["e"], CPU)
    assert contexts.cache() == b"compiled" and contexts._scratch is None
    contexts.allocate()
    assert contexts._scratch.numel() == 64
    monkeypatch.setattr(_Cache, "serialize", lambda self: None)
    with pytest.raises(ArtifactError, match="runtime.cache: tensorrt_rtx 1.6.1.120 does not give"):
        contexts.cache()


def test_what_cannot_run_is_named_with_its_device(no_cuda, folder):
    refused = _Engine(TENSORS | {"context": None})
    with pytest.raises(ArtifactError, match=r"e.engine: tensorrt_rtx 1.6.1.120 cannot run it on GPU cuda:3"):
        Contexts(_flavour(refused), folder, ["e"], torch.device("cuda:3"))
    with pytest.raises(ArtifactError, match="cannot load it"):
        Contexts(_flavour(None), folder, ["e"], CPU)
    small = _Engine(TENSORS | {"context": SimpleNamespace(set_device_memory=lambda address, size: False)})
    with pytest.raises(ArtifactError, match="engine e: .* does not take 64 bytes of scratch"):
        Contexts(_flavour(small), folder, ["e"], CPU).allocate()


def test_a_build_that_cannot_compile_its_cache_fails_as_a_build(no_cuda, folder, monkeypatch):
    from gptoss_export.targets.tensorrt.build import _Made

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    (folder / "made").mkdir()
    made = _Made(_flavour(None), "sm_90", True, folder / "made", None, None)
    made._write_engine("e", b"engine", "all")
    with pytest.raises(BuildError, match=r"cannot be compiled here: .*e.engine"):
        made.cache()


def test_a_plugin_inside_of_an_engine_is_not_written(tmp_path):
    from gptoss_export.targets.tensorrt.build import _Made

    tensors = {"x": (torch.bfloat16, (4, 4)), "cache": (torch.uint8, (128,)), "out": (torch.float32, (8, 16))}
    fields = dataclasses.asdict(PLUGIN) | {"name": "k-1", "ptx": "", "cubin": b"", "tensors": tensors}
    plugin = SimpleNamespace(**fields, arguments=PLUGIN.inputs + PLUGIN.outputs)
    for name, expected in (flavours.RTX, {"k-1": PLUGIN}), (flavours.FULL, {}):
        (tmp_path / name).mkdir()
        made = _Made(_flavour(None, name), "sm_90", True, tmp_path / name, None, None)
        made._write_plugin(plugin)
        assert made.plugins == expected
        assert len(list((tmp_path / name / "plugins").iterdir())) == 2 * len(expected)


@pytest.mark.parametrize(("refused", "message"), [("set_tensor_address", "does not take the address of in0"),
                                                  ("execute_async_v3", "could not enqueue")])  # fmt: skip
def test_what_tensorrt_refuses_to_run_is_named(refused, message):
    answers = {"set_tensor_address": True, "execute_async_v3": True} | {refused: False}
    context = SimpleNamespace(**{name: lambda *_, answer=answer: answer for name, answer in answers.items()})
    step = SCHEDULE.programs["decode"].steps[0]
    with pytest.raises(RunError, match=f"engine e: TensorRT {message}"):
        _enqueue(context, step, lambda reference: 0, 0)


class _Driver:
    """Stands for cuda.bindings.driver."""

    class CUresult:
        CUDA_SUCCESS = SimpleNamespace(name="CUDA_SUCCESS")

    def __init__(self, **failing):
        self.failing, self.unloaded = failing, []

    def __getattr__(self, function):
        def call(*arguments):
            if function == "cuModuleUnload":
                self.unloaded += arguments
            if function in self.failing:
                return (SimpleNamespace(name=self.failing[function]),)
            return (self.CUresult.CUDA_SUCCESS, f"a result of {function}")

        return call


@pytest.fixture
def cubin(tmp_path):
    (tmp_path / "k.cubin").write_bytes(b"cubin")
    return tmp_path / "k.cubin"


def _with_driver(monkeypatch, driver):
    for name in "cuda", "cuda.bindings":
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(bindings=SimpleNamespace(driver=driver), driver=driver))
    return driver


def test_a_kernel_that_fails_is_named(monkeypatch, cubin, no_cuda):
    _with_driver(monkeypatch, _Driver(cuModuleLoadData="CUDA_ERROR_NO_BINARY_FOR_GPU"))
    with pytest.raises(ArtifactError, match=r"k.cubin: cannot be loaded .*cuModuleLoadData.*NO_BINARY_FOR_GPU"):
        Kernel(cubin, PLUGIN, CPU)
    _with_driver(monkeypatch, _Driver(cuLaunchKernel="CUDA_ERROR_INVALID_VALUE"))
    with pytest.raises(RunError, match="kernel _k: CUDA driver: cuLaunchKernel failed with CUDA_ERROR_INVALID_VALUE"):
        Kernel(cubin, PLUGIN, CPU).launch([0, 0, 0, 0], 0)


def test_a_kernel_is_unloaded_with_its_owner(monkeypatch, cubin, no_cuda):
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    driver = _with_driver(monkeypatch, _Driver())
    kernel = Kernel(cubin, PLUGIN, torch.device("cuda:3"))
    assert driver.unloaded == []
    del kernel
    gc.collect()
    assert driver.unloaded == ["a result of cuModuleLoadData"] and no_cuda[-1] == torch.device("cuda:3")
    capturing[0] = True  # which unloading would end
    kernel = Kernel(cubin, PLUGIN, CPU)
    del kernel
    gc.collect()
    assert len(driver.unloaded) == 1


def test_loading_reads_what_the_manifest_names(monkeypatch, folder, no_cuda):
    """A cache that lies in the folder alone was never hashed; engines are held against the schedule."""
    from gptoss_export.targets.tensorrt.run import load_programs

    _with_driver(monkeypatch, _Driver())
    save_schedule(SCHEDULE, folder)
    (folder / "plugins").mkdir()
    (folder / "plugins" / "k-1.cubin").write_bytes(b"cubin")
    (folder / CACHE).write_bytes(b"of this GPU")
    named = SimpleNamespace(programs=MANIFEST.programs, files=MANIFEST.files | {CACHE: FileSpec(1, "")})
    for manifest, taken in (MANIFEST, None), (named, True):
        programs = load_programs(manifest, folder, CPU, _flavour(_Engine(TENSORS)))
        contexts = next(part for part in programs["decode"].args if isinstance(part, Contexts))
        assert contexts.taken is taken
    with pytest.raises(ArtifactError, match="(?s)contradict each other.*in1: input 2"):
        load_programs(MANIFEST, folder, CPU, _flavour(_Engine(TENSORS | {"in1": ((9, 8), torch.bfloat16)})))


def test_graphs_go_before_the_kernels_that_they_launch():
    from gptoss_export.runtime.decode_step import DecodeStep

    class Held:
        def __call__(self):
            return []

    gone = []
    decode, graph = Held(), Held()
    for name, held in ("kernels", decode), ("graph", graph):
        weakref.finalize(held, gone.append, name)
    step = DecodeStep(decode, None, None, None, None)
    step._captured[False] = graph
    del decode, graph, held, step
    gc.collect()
    assert gone == ["graph", "kernels"]


def test_programs_run_on_their_own_device(monkeypatch, no_cuda):
    from gptoss_export.targets.tensorrt.compile import run

    stream = SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: None)
    arena = torch.empty(1024, dtype=torch.uint8)
    launched = []
    kernel = SimpleNamespace(launch=lambda arguments, stream: launched.append((arguments, stream, list(no_cuda))))
    step = KernelStep("k-1", (Reference(ARENA, 256), Reference(INPUT, 0)))
    given = [torch.zeros(4)]
    run._run(ProgramSchedule(1024, (step,)), [], None, {"k-1": kernel}, arena, given)
    assert launched == [([arena.data_ptr() + 256, given[0].data_ptr()], 7, [arena.device])]


# ---- which TensorRT ----------------------------------------------------------------------------------------


@pytest.fixture
def modules(monkeypatch):
    """Says which TensorRTs are installed, by name and version."""

    def install(**versions):
        flavours.installed.cache_clear()
        for name in flavours.FULL, flavours.RTX:
            module = SimpleNamespace(__version__=versions[name], Builder=None) if name in versions else None
            monkeypatch.setitem(sys.modules, name, module)

    yield install
    flavours.installed.cache_clear()


def test_which_tensorrt(modules):
    modules(tensorrt="11.4.0", tensorrt_rtx="1.6.1.120")
    assert flavours.installed().name == "tensorrt_rtx"  # as long as the other way has never run
    assert flavours.installed("tensorrt").version == "11.4.0" and flavours.installed("tensorrt_rtx").version == "1.6.1.120"
    modules(tensorrt="11.4.0")
    assert flavours.installed().name == "tensorrt" and flavours.installed("tensorrt_rtx") is None
    modules(tensorrt="10.13.2")
    assert flavours.installed() is None and flavours.installed("tensorrt") is None


def test_an_artifact_asks_for_the_tensorrt_that_built_it(modules, tmp_path):
    save_schedule(SCHEDULE, tmp_path)
    target = TARGETS["tensorrt"]

    def problems(**versions):
        manifest = SimpleNamespace(**vars(MANIFEST), versions=versions, device="cuda", arch="sm_90")
        return "\n".join(target.problems(manifest, tmp_path))

    modules(tensorrt="11.4.0", tensorrt_rtx="1.6.1.120")
    assert "artifact built with" not in problems(tensorrt_rtx="1.6.1.120")
    assert "artifact built with" not in problems(tensorrt="11.4.0")
    assert "tensorrt: artifact built with 11.5, found tensorrt 11.4.0" in problems(tensorrt="11.5")
    modules(tensorrt_rtx="1.6.1.120")
    assert "tensorrt: artifact built with 11.4.0, found tensorrt_rtx 1.6.1.120" in problems(tensorrt="11.4.0")


def test_no_sm_90_for_versions_that_may_refuse_it(modules, monkeypatch):
    target = TARGETS["tensorrt"]
    monkeypatch.setattr(type(target), "here", lambda self, device: "sm_90")
    modules(tensorrt_rtx="1.7.1")
    assert "sm_90" not in target.archs("cuda") and "sm_89" in target.archs("cuda")
    modules(tensorrt_rtx="1.6.1.120")
    assert target.archs("cuda")[0] == "sm_90"
    modules(tensorrt="11.4.0")
    assert target.archs("cuda") == ("sm_90",)

"""How loading and running refuse, and what a build writes for them. Needs no TensorRT and no GPU."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from tensorrt_fakes import (
    ACCEPTED_CACHE,
    CPU,
    MANIFEST,
    PLUGIN,
    SCHEDULE,
    TENSORS,
    FakeCache,
    FakeDriver,
    FakeEngine,
    fake_edition,
    without_cuda,
)

from gptoss_export.artifact.files import FileSpec
from gptoss_export.errors import ArtifactError, BuildError, RunError
from gptoss_export.model.sampling_state import Choice
from gptoss_export.runtime.decode_step import DecodeStep, StepRows
from gptoss_export.runtime.with_torch.tensors import TorchTensors
from gptoss_export.targets.tensorrt import build
from gptoss_export.targets.tensorrt.contexts import CACHE, Contexts
from gptoss_export.targets.tensorrt.edition import FULL, RTX
from gptoss_export.targets.tensorrt.launched_kernel import LaunchedKernel
from gptoss_export.targets.tensorrt.partition import Launch
from gptoss_export.targets.tensorrt.run import enqueue_engine, load_programs, run_program
from gptoss_export.targets.tensorrt.schedule import (
    ARENA,
    INPUT,
    EngineStep,
    KernelStep,
    ProgramSchedule,
    Reference,
    save_schedule,
)


@pytest.fixture
def no_cuda(monkeypatch):
    with without_cuda(monkeypatch) as devices:
        yield devices


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "e.engine").write_bytes(b"engine")
    return tmp_path


# ---- contexts ----------------------------------------------------------------------------------------------


def test_contexts_say_whether_the_cache_was_accepted(no_cuda, folder):
    (folder / CACHE).write_bytes(
        ACCEPTED_CACHE
    )  # not read from the disk: the caller hands over what the manifest names
    for stored, accepted in (None, None), (ACCEPTED_CACHE, True), (b"of another GPU", False):
        assert Contexts(fake_edition(FakeEngine()), folder, ["e"], CPU, stored).cache_accepted is accepted


def test_compiling_needs_no_scratch_memory(no_cuda, folder, monkeypatch):
    contexts = Contexts(fake_edition(FakeEngine()), folder, ["e"], CPU)
    assert contexts.cache() == b"compiled" and contexts._scratch is None
    contexts.allocate()
    assert contexts._scratch.numel() == 64
    monkeypatch.setattr(FakeCache, "serialized", None)
    with pytest.raises(ArtifactError, match=r"runtime\.cache: tensorrt_rtx 1\.6\.1\.120 does not return"):
        contexts.cache()


def test_what_cannot_run_is_named_with_its_device(no_cuda, folder):
    with pytest.raises(ArtifactError, match=r"e.engine: tensorrt_rtx 1.6.1.120 cannot run it on GPU cuda:3"):
        Contexts(fake_edition(FakeEngine(context=None)), folder, ["e"], torch.device("cuda:3"))
    with pytest.raises(ArtifactError, match="cannot load it"):
        Contexts(fake_edition(None), folder, ["e"], CPU)
    small = FakeEngine(context=SimpleNamespace(set_device_memory=lambda address, size: False))
    with pytest.raises(ArtifactError, match=r"engine e: .* does not accept 64 bytes of scratch"):
        Contexts(fake_edition(small), folder, ["e"], CPU).allocate()


# ---- what a build writes -----------------------------------------------------------------------------------


def _compilation(folder, name=RTX, maker=None):
    return build.EngineCompilation(fake_edition(None, name), "sm_90", True, folder, maker, None, "{}")


def test_a_build_that_cannot_compile_its_cache_fails_as_a_build(no_cuda, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    compilation = _compilation(tmp_path)
    compilation._write_engine("e", b"engine", "all")
    with pytest.raises(BuildError, match=r"cannot be compiled here: .*e.engine"):
        compilation.finish()


def _fake_partition(monkeypatch):
    """A program that is one launch of a kernel. Returns the plugin that a maker makes of it."""
    tensors = {"x": (torch.bfloat16, (4, 4)), "cache": (torch.uint8, (128,)), "out": (torch.float32, (8, 16))}
    graph = torch.fx.Graph()
    nodes = {name: graph.placeholder(name) for name in tensors}
    for name, (dtype, shape) in tensors.items():
        nodes[name].meta["val"] = torch.empty(shape, dtype=dtype)
    monkeypatch.setattr(build, "partition", lambda exported, program: [Launch("k", None, nodes, (2, 1, 1))])
    monkeypatch.setattr(build, "build_whole", lambda inputs, *_: (b"engine", inputs))
    graph.output((nodes["out"],))
    exported = SimpleNamespace(graph=SimpleNamespace(nodes=list(graph.nodes)))
    fields = dataclasses.asdict(PLUGIN) | {"name": "k-1", "ptx": "ptx", "cubin": b"cubin", "tensors": tensors}
    plugin = SimpleNamespace(**fields, arguments=PLUGIN.inputs + PLUGIN.outputs)
    return exported, plugin


@pytest.mark.parametrize(("name", "plugins"), [(RTX, {"k-1": PLUGIN}), (FULL, {})])
def test_a_plugin_inside_of_an_engine_is_not_written(tmp_path, monkeypatch, name, plugins):
    exported, plugin = _fake_partition(monkeypatch)
    monkeypatch.setattr(build, "plan_memory", lambda *_: SimpleNamespace(references=_AnyReference(), arena=0))
    compilation = _compilation(tmp_path, name, SimpleNamespace(make=lambda *_: plugin))
    signature = SimpleNamespace(inputs=("x", "cache", "out"))
    compilation.compile(SimpleNamespace(name="decode_1", exported=exported, signature=signature))
    assert compilation.schedule.plugins == plugins
    assert len(list((tmp_path / "plugins").iterdir())) == 2 * len(plugins)
    (step,) = compilation.schedule.programs["decode_1"].steps
    assert isinstance(step, KernelStep if name == RTX else EngineStep)
    assert len(list((tmp_path / "engines").iterdir())) == (0 if name == RTX else 1)


class _AnyReference(dict):
    def __missing__(self, node):
        return Reference(ARENA, 0)


# ---- running -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "message"),
    [("set_tensor_address", "does not accept the address of in0"), ("execute_async_v3", "could not enqueue")],
)
def test_what_tensorrt_refuses_to_run_is_named(refused, message):
    answers = {"set_tensor_address": True, "execute_async_v3": True} | {refused: False}
    context = SimpleNamespace(**{name: lambda *_, answer=answer: answer for name, answer in answers.items()})
    step = SCHEDULE.programs["decode_1"].steps[0]
    with pytest.raises(RunError, match=f"engine e: TensorRT {message}"):
        enqueue_engine(context, step, lambda reference: 0, 0)


@pytest.fixture
def cubin(tmp_path):
    (tmp_path / "k.cubin").write_bytes(b"cubin")
    return tmp_path / "k.cubin"


def test_a_kernel_that_fails_is_named(monkeypatch, cubin, no_cuda):
    FakeDriver(cuModuleLoadData="CUDA_ERROR_NO_BINARY_FOR_GPU").install(monkeypatch)
    with pytest.raises(ArtifactError, match=r"k.cubin: cannot be loaded .*cuModuleLoadData.*NO_BINARY_FOR_GPU"):
        LaunchedKernel(cubin, PLUGIN, CPU)
    FakeDriver(cuLaunchKernel="CUDA_ERROR_INVALID_VALUE").install(monkeypatch)
    with pytest.raises(RunError, match="kernel _k: CUDA driver: cuLaunchKernel failed with CUDA_ERROR_INVALID_VALUE"):
        LaunchedKernel(cubin, PLUGIN, CPU).launch([0, 0, 0, 0], 0)


def test_a_kernel_is_unloaded_with_its_owner(monkeypatch, cubin, no_cuda):
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    driver = FakeDriver().install(monkeypatch)
    kernel = LaunchedKernel(cubin, PLUGIN, torch.device("cuda:3"))
    assert driver.unloaded == []
    del kernel
    gc.collect()
    assert driver.unloaded == ["a result of cuModuleLoadData"] and no_cuda[-1] == torch.device("cuda:3")
    capturing[0] = True  # which unloading would end
    kernel = LaunchedKernel(cubin, PLUGIN, CPU)
    del kernel
    gc.collect()
    assert len(driver.unloaded) == 1


def test_loading_reads_what_the_manifest_names(monkeypatch, folder, no_cuda):
    """A cache that only lies in the folder was never hashed. Engines are compared with the schedule."""
    FakeDriver().install(monkeypatch)
    save_schedule(SCHEDULE, folder)
    (folder / "plugins").mkdir()
    (folder / "plugins" / "k-1.cubin").write_bytes(b"cubin")
    (folder / CACHE).write_bytes(ACCEPTED_CACHE)
    named = SimpleNamespace(**vars(MANIFEST) | {"files": MANIFEST.files | {CACHE: FileSpec(1, "")}})
    for manifest, accepted in (MANIFEST, None), (named, True):
        programs = load_programs(manifest, folder, CPU, fake_edition(FakeEngine()))
        contexts = next(argument for argument in programs["decode_1"].args if isinstance(argument, Contexts))
        assert contexts.cache_accepted is accepted
    larger = FakeEngine(TENSORS | {"in1": ((9, 8), torch.bfloat16)})
    with pytest.raises(ArtifactError, match=r"(?s)contradict each other.*in1: input 2"):
        load_programs(MANIFEST, folder, CPU, fake_edition(larger))


def test_programs_run_on_their_own_device(monkeypatch, no_cuda):
    stream = SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: None)
    arena = torch.empty(1024, dtype=torch.uint8)
    launched = []
    kernel = SimpleNamespace(launch=lambda arguments, stream: launched.append((arguments, stream, list(no_cuda))))
    step = KernelStep("k-1", (Reference(ARENA, 256), Reference(INPUT, 0)))
    inputs = [torch.zeros(4)]
    run_program(ProgramSchedule(1024, (step,)), [], None, {"k-1": kernel}, arena, inputs)
    assert launched == [([arena.data_ptr() + 256, inputs[0].data_ptr()], 7, [arena.device])]


def test_graphs_go_before_the_kernels_that_they_launch():
    class Held:
        def __call__(self):
            return []

    gone = []
    decode, graph = Held(), Held()
    for name, held in ("kernels", decode), ("graph", graph):
        weakref.finalize(held, gone.append, name)
    tensors = TorchTensors(CPU)
    step = DecodeStep(decode, StepRows.empty(1, tensors), None, tensors)
    step.captured[Choice.MOST_LIKELY] = graph
    del decode, graph, held, step
    gc.collect()
    assert gone == ["graph", "kernels"]

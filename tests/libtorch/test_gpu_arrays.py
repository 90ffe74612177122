"""Arrays of a GPU and captures, without one: a driver that keeps the GPU's memory on the host. On a GPU: tests/gpu."""

from __future__ import annotations

import ctypes
import gc
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptoss_export.cuda import pinned
from gptoss_export.errors import CaptureError, MachineError, RunError
from gptoss_export.libtorch import graph_capture
from gptoss_export.libtorch.interface import CudaLibrary
from gptoss_export.runtime.without_torch import dlpack, on_gpu
from gptoss_export.runtime.without_torch.on_gpu import GpuArrays

OUT_OF_MEMORY = "cuGraphInstantiateWithFlags"


class Driver:
    """Calls of the driver, by name, and what they do to memory. `fails`: the calls that have too little memory."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.calls: list[tuple[str, int]] = []  # copies, with the stream of each
        self.captured = 0  # the stream that is captured
        self.valid = True  # whether the capture is
        self.fails: set[str] = set()
        self.done = 0  # what cuEventQuery returns

    def call(self, name: str, *arguments: Any) -> None:
        if name in self.fails:
            raise MachineError(f"{name}: too little GPU memory")
        found = getattr(self, name, None)
        if found is not None:
            found(*arguments)

    def function(self, name: str) -> Any:
        return lambda *_: self.done if name == "cuEventQuery" else 0

    def _made(self, kept: dict[int, Any], to: Any, size: Any) -> None:
        buffer = ctypes.create_string_buffer(max(size.value, 1))
        to._obj.value = ctypes.addressof(buffer)
        kept[to._obj.value] = buffer

    def cuMemAllocAsync(self, to: Any, size: Any, stream: Any) -> None:
        self._made(self.memory, to, size)

    def cuMemFreeAsync(self, address: Any, stream: Any) -> None:
        del self.memory[address.value]

    def cuMemHostAlloc(self, to: Any, size: Any, flags: int) -> None:
        self._made(self.host, to, size)

    def cuMemFreeHost(self, pointer: Any) -> None:
        del self.host[pointer.value]

    def _copy(self, to: Any, source: Any, size: Any, stream: Any) -> None:
        self.calls.append(("copy", stream.value))
        ctypes.memmove(to.value, source.value, size.value)

    cuMemcpyDtoDAsync_v2 = cuMemcpyHtoDAsync_v2 = cuMemcpyDtoHAsync_v2 = _copy  # noqa: N815

    def cuMemsetD8Async(self, to: Any, byte: Any, size: Any, stream: Any) -> None:
        ctypes.memset(to.value, byte.value, size.value)

    def cuMemsetD32Async(self, to: Any, bits: Any, count: Any, stream: Any) -> None:
        (ctypes.c_uint32 * count.value).from_address(to.value)[:] = [bits.value] * count.value

    def cuStreamIsCapturing(self, stream: Any, status: Any) -> None:
        status._obj.value = (1 if self.valid else 2) if stream.value == self.captured else 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> None:
        self.captured = 0
        raise RunError("the capture is not valid")


class FakeGpu:
    index, capability = 0, (9, 0)

    def __init__(self) -> None:
        self.streams = iter(range(70, 90))
        self.waited = 0

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def new_stream(self) -> int:
        return next(self.streams)

    def synchronize(self) -> None:
        self.waited += 1


class Method:
    """A method of libtorch's class for graphs."""

    def __init__(self, does: Any) -> None:
        self.does = does
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self.does(*arguments)


class Class:
    """libtorch's class: which pools have living graphs, and which were asked for."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.graphs, self.pools, self.named = driver, {}, [], 0
        names = {
            graph_capture._CONSTRUCT: lambda address, keep: None,
            graph_capture._DESTROY: lambda address: self.graphs.pop(address, None),
            graph_capture._BEGIN: self.begin,
            graph_capture._END: self.end,
            graph_capture._RAW: lambda address: 1234,
            graph_capture._NEW_POOL: self.new_pool,
        }
        self.library: Any = SimpleNamespace(**{name: Method(does) for name, does in names.items()})

    def new_pool(self) -> graph_capture.Pool:
        self.named += 1
        return graph_capture.Pool(self.named, 0)

    def begin(self, address: int, pool: graph_capture.Pool, mode: int) -> None:
        assert not self.driver.captured  # libtorch would end the process
        self.driver.captured = 71
        self.graphs[address] = pool.first
        self.pools.append(pool.first)

    def end(self, address: int) -> None:
        assert self.driver.captured and self.driver.valid  # libtorch would end the process
        self.driver.captured = 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Driver]:
    made = Driver()
    for module in (on_gpu, pinned, graph_capture):
        monkeypatch.setattr(module, "call", made.call)
    for module in (on_gpu, pinned):
        monkeypatch.setattr(module, "function", made.function)
    monkeypatch.setattr(on_gpu, "launch_early", lambda graph, capability: 7)
    yield made
    request.node.funcargs.clear()  # what a test has made ends while this is still the driver
    gc.collect()


@pytest.fixture
def torch_class(driver: Driver) -> Class:
    return Class(driver)


@pytest.fixture
def machine(torch_class: Class) -> Any:
    """libtorch and a GPU."""
    functions: Any = SimpleNamespace(call=lambda name, *arguments: None)
    held = {"cuda": CudaLibrary(torch_class.library, functions), "installation": SimpleNamespace(version="2.13.0")}
    libtorch: Any = type("Libtorch", (), held)()
    loading: Future[Any] = Future()
    loading.set_result(libtorch)
    return loading, FakeGpu()


@pytest.fixture
def tensors(machine: Any) -> GpuArrays:
    return GpuArrays(*machine)


def test_contents_come_and_go(tensors: GpuArrays, driver: Driver) -> None:
    made = tensors.empty((3, 4), "int64")
    tensors.write(made, array("q", range(12)))
    assert made.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert tensors.rows(made, [2, 0]).tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    large = tensors.empty((1 << 15,), "int64")  # through pinned memory
    tensors.write(large, array("q", range(1 << 15)))
    assert large.tolist() == list(range(1 << 15))
    assert tensors.zeros((2,), "float32").fill_(1.5).tolist() == [1.5, 1.5]
    assert tensors.empty((2,), "int64").fill_(-1).tolist() == [-1, -1] and tensors.empty((0, 3), "int32").tolist() == []
    with pytest.raises(ValueError, match="cannot be filled with 3"):
        made.fill_(3)
    assert {stream for _, stream in driver.calls} == {70}
    del made, large
    gc.collect()
    assert not driver.memory


def test_pinned_memory_is_used_again(machine: Any, driver: Driver) -> None:
    tensors = GpuArrays(*machine)
    made = tensors.zeros((8,), "int64")
    for _ in range(3):
        tensors.fetch([made]).wait()
    tensors.fetch([made])  # nobody waits
    gc.collect()
    assert len(driver.host) == 1
    driver.done = 600  # the GPU still reads
    kept = [tensors.fetch([made]) for _ in range(2)]
    assert len(driver.host) == 3
    del kept, tensors, made
    gc.collect()
    assert not driver.host


def test_captures(tensors: GpuArrays, driver: Driver, torch_class: Class) -> None:
    source, target = tensors.zeros((4,), "int64").fill_(-1), tensors.zeros((4,), "int64")
    captured, result = tensors.capture(lambda: target.copy_(source))
    assert (captured.early_launches, result) == (7, target) and driver.calls[-1] == ("copy", 71)
    captured.graph.replay()
    target.copy_(source)
    assert driver.calls[-1] == ("copy", 70)
    pool = tensors.new_pool()
    for _ in range(2):
        tensors.capture(lambda: None, pool)
    assert torch_class.pools == [1, 2, 2]


def test_another_thread_uses_the_other_stream(tensors: GpuArrays, driver: Driver) -> None:
    made, found = tensors.zeros((4,), "int64"), []

    def work() -> None:
        thread = threading.Thread(target=lambda: found.append(made.tolist()))
        thread.start()
        thread.join()

    tensors.capture(work)
    assert found == [[0] * 4] and driver.calls == [("copy", 70)]


def test_a_runner_that_follows_uses_the_pools_of_the_one_before(machine: Any, torch_class: Class) -> None:
    """Runners that live at the same time share none: their threads may run at the same time."""
    for _ in range(3):
        alive = [GpuArrays(*machine) for _ in range(2)]
        kept = [tensors.capture(lambda: None) for tensors in alive]
        del alive, kept
        gc.collect()
    assert sorted(torch_class.pools) == [1, 1, 1, 2, 2, 2] and len(torch_class.graphs) == 2  # the first of each pool


def test_a_program_that_fails_in_a_capture(tensors: GpuArrays, driver: Driver, torch_class: Class) -> None:
    def fails() -> None:
        raise RunError("program decode_1 failed")

    with pytest.raises(CaptureError, match="program decode_1 failed"):
        tensors.capture(fails)
    gc.collect()
    assert not torch_class.graphs  # so that libtorch can give the memory to others
    tensors.capture(lambda: None)
    assert torch_class.pools == [1, 2]
    driver.fails = {OUT_OF_MEMORY}
    with pytest.raises(CaptureError, match="too little GPU memory"):
        tensors.capture(lambda: None)


def test_a_spoilt_capture_ends_captures_and_not_the_process(tensors: GpuArrays, driver: Driver) -> None:
    def spoils() -> None:
        driver.valid = False

    with pytest.raises(MachineError, match="another call has spoilt a capture; start the process again"):
        tensors.capture(spoils)
    driver.valid = True
    for _ in range(2):
        with pytest.raises(MachineError, match="an earlier capture was spoilt"):
            tensors.capture(lambda: None)
    assert tensors.zeros((2,), "int64").tolist() == [0, 0]


def test_memory_is_kept_until_its_readers_are_done(tensors: GpuArrays, driver: Driver) -> None:
    """In a capture nothing waits for the GPU, which would spoil it."""

    def given_and_forgotten() -> None:
        address = tensors.zeros((2,), "int64").__dlpack__()
        del address
        gc.collect()

    gpu: Any = tensors.gpu
    given_and_forgotten()
    assert gpu.waited == 1 and not driver.memory
    tensors.capture(given_and_forgotten)
    assert gpu.waited == 1 and len(driver.memory) == 1
    given_and_forgotten()
    assert gpu.waited == 2 and not driver.memory and not dlpack._GIVEN

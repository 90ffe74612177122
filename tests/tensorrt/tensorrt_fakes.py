"""A schedule with its manifest, and engines, a TensorRT and a CUDA driver that run nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptoss_export.artifact.calls import Role, Signature, TensorSpec
from gptoss_export.artifact.description import describe_code
from gptoss_export.artifact.files import FileSpec
from gptoss_export.artifact.programs import Sizes
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.targets.tensorrt import edition
from gptoss_export.targets.tensorrt.schedule import (
    ARENA,
    INPUT,
    OUTPUT,
    EngineStep,
    KernelStep,
    PluginSpec,
    ProgramSchedule,
    Reference,
    Schedule,
)

CPU = torch.device("cpu")
COMPILED_FOR: dict[str, Any] = {
    "target": "tensorrt",
    "target_options": {},
    "device": "cuda",
    "arch": "sm_90",
    "dtype": "bfloat16",
    "model": PRESETS["tiny"],
    "sizes": Sizes((1,), 8, (4,)),
    "programs": {
        "decode_1": Signature(
            (
                TensorSpec("tokens", Role.DATA, (4,), "int64"),
                TensorSpec("k_cache.0", Role.CACHE, (8, 8), "bfloat16"),
                TensorSpec("w", Role.WEIGHT, (8, 8), "bfloat16"),
            ),
            (TensorSpec("logits", Role.DATA, (2, 8), "float32"),),
        )
    },
}
MANIFEST: Any = SimpleNamespace(
    **COMPILED_FOR,
    files={name: FileSpec(1, "") for name in ("schedule.json", "engines/e.engine", "plugins/k-1.cubin")},
    missing_programs=lambda expected: [],
)
PLUGIN = PluginSpec("_k", ("x", "cache"), ("cache", "out"), (32, 128, 128, 512), (2, 1, 1), 128, 0)
SCHEDULE = Schedule(
    describe_code(**COMPILED_FOR),
    {"e": "decode: all of it"},
    {"k-1": PLUGIN},
    {
        "decode_1": ProgramSchedule(
            1024,
            (
                EngineStep("e", (Reference(INPUT, 0), Reference(INPUT, 2)), (Reference(ARENA, 256),)),
                KernelStep(
                    "k-1", (Reference(ARENA, 256), Reference(INPUT, 1), Reference(INPUT, 1), Reference(ARENA, 512))
                ),
                EngineStep("e", (Reference(INPUT, 0), Reference(INPUT, 2)), (Reference(OUTPUT, 0),)),
            ),
        )
    },
)

# The tensors of engine `e`: name -> (shape, dtype).
TENSORS: dict[str, Any] = {
    "in0": ((4,), torch.int64),
    "in1": ((8, 8), torch.bfloat16),
    "out0": ((2, 8), torch.float32),
}
ACCEPTED_CACHE = b"of this GPU"


class FakeCache:
    """A runtime cache."""

    serialized: bytes | None = b"compiled"

    def deserialize(self, blob: bytes) -> bool:
        return blob == ACCEPTED_CACHE

    def serialize(self) -> bytes | None:
        return self.serialized


class FakeEngine:
    """An engine with these tensors. `context` is what it makes for them, None where it refuses."""

    device_memory_size_v2 = 64

    def __init__(self, tensors: dict[str, Any] = TENSORS, **context: Any) -> None:
        self._tensors = tensors
        self._context = context.get("context", SimpleNamespace(set_device_memory=lambda address, size: None))
        self.num_io_tensors = len(tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][0]

    def get_tensor_dtype(self, name: str) -> torch.dtype:
        return self._tensors[name][1]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INPUT" if name.startswith("in") else "OUTPUT")

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            set_runtime_cache=lambda cache: True,
            create_runtime_cache=FakeCache,
        )

    def create_execution_context(self, config: Any) -> Any:
        return self._context


class _Logger:
    ERROR = 0

    def __init__(self, severity: int) -> None:
        pass


def fake_edition(engine: FakeEngine | None, name: str = edition.RTX) -> edition.Edition:
    """A TensorRT that loads every file as `engine`; None: it refuses."""
    module: Any = SimpleNamespace(
        Logger=_Logger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda blob: engine),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=1),
    )
    return edition.Edition(name, "1.6.1.120", module)


class FakeDriver:
    """cuda.bindings.driver; `failing` names functions and their errors."""

    class CUresult:
        CUDA_SUCCESS = SimpleNamespace(name="CUDA_SUCCESS")

    def __init__(self, **failing: str) -> None:
        self.failing = failing
        self.unloaded: list[Any] = []

    def __getattr__(self, function: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if function == "cuModuleUnload":
                self.unloaded += arguments
            if function in self.failing:
                return (SimpleNamespace(name=self.failing[function]),)
            return (self.CUresult.CUDA_SUCCESS, f"a result of {function}")

        return call

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
        module = SimpleNamespace(bindings=SimpleNamespace(driver=self), driver=self)
        for name in "cuda", "cuda.bindings":
            monkeypatch.setitem(sys.modules, name, module)
        return self


@contextlib.contextmanager
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """torch's calls that need a GPU do nothing. Gives the devices that were made current."""
    seen: list[torch.device] = []

    def current(device: torch.device) -> contextlib.AbstractContextManager[None]:
        seen.append(device)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    yield seen

"""Arrays of a CPU do what numpy's do."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from array import array
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from gptoss_export.libtorch.installation import installation
from gptoss_export.libtorch.interface import Libtorch
from gptoss_export.libtorch.tensor_handle import TensorHandle
from gptoss_export.model.dtypes import torch_dtype
from gptoss_export.runtime.tensors import runs
from gptoss_export.runtime.without_torch import dlpack
from gptoss_export.runtime.without_torch.array import Array
from gptoss_export.runtime.without_torch.on_cpu import CpuArrays


@pytest.fixture(scope="module")
def tensors() -> CpuArrays:
    loading: Future[Libtorch] = Future()
    loading.set_result(Libtorch(installation(), cuda=False))
    return CpuArrays(loading)


def counted(tensors: CpuArrays, *shape: int) -> tuple[Array, np.ndarray]:
    """An array and one of numpy with the same numbers."""
    expected = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    made = tensors.empty(shape, "int64")
    tensors.write(made, array("q", expected.ravel().tolist()))
    return made, expected


@pytest.mark.parametrize("index", [0, -1, 2, slice(1, 3), slice(None), slice(3, 1), slice(-2, None)], ids=str)
def test_rows_of_an_array(tensors: CpuArrays, index: Any) -> None:
    found, expected = counted(tensors, 4, 3, 2)
    assert np.array_equal(found[index].numpy(), expected[index])


def test_slices_and_views_are_the_same_memory(tensors: CpuArrays) -> None:
    found, expected = counted(tensors, 4, 6)
    found[1:3].view(3, -1)[1].fill_(0)
    expected[1:3].reshape(3, -1)[1] = 0
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(np.concatenate([part.numpy() for part in found.split(3)]), expected)
    assert found.view((2, 12)).shape == (2, 12) and found.clone().data_ptr() != found.data_ptr()


def test_moving_rows(tensors: CpuArrays) -> None:
    found, expected = counted(tensors, 6, 5)
    ids = [4, 5, 0, 3, 3]
    rows = tensors.rows(found, ids)
    assert np.array_equal(rows.numpy(), expected[ids])
    tensors.put_rows(found, [1, 2, 5], rows[:3])
    expected[[1, 2, 5]] = expected[[4, 5, 0]]
    assert np.array_equal(found.numpy(), expected)
    columns = [0, 4, 2, 2, 1, 3]
    assert np.array_equal(tensors.picked(found, columns).numpy(), expected[np.arange(6), columns])


def test_runs_are_as_long_as_they_can_be() -> None:
    assert list(runs([0, 1, 2, 5, 6], [3, 4, 9, 10, 11])) == [(0, 3, 2), (2, 9, 1), (5, 10, 2)]
    assert list(runs([], [])) == []


@pytest.mark.parametrize(
    ("dtype", "value"), [("int64", -1), ("int32", 7), ("float32", 1.5), ("float32", 0), ("uint8", 0)]
)
def test_filling(tensors: CpuArrays, dtype: str, value: float) -> None:
    assert tensors.empty((3, 5), dtype).fill_(value).tolist() == [[value] * 5] * 3


def test_bfloat16_becomes_float32(tensors: CpuArrays) -> None:
    made = tensors.empty((3,), "bfloat16")
    tensors.write(made.reinterpreted("uint8").view(3, 2), array("H", [0x3F80, 0xC000, 0x7F80]))
    assert made.numpy().dtype == np.float32 and made.tolist() == [1.0, -2.0, float("inf")]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda a: a[4], IndexError),
        (lambda a: a[::2], IndexError),
        (lambda a: a.view(5, 5), ValueError),
        (lambda a: a.copy_(a[:2]), ValueError),
        (lambda a: a.__array__(copy=False), ValueError),
    ],
)
def test_what_an_array_cannot_do(tensors: CpuArrays, change: Any, error: type[Exception]) -> None:
    found, _ = counted(tensors, 4, 3)
    with pytest.raises(error):
        change(found)
    with pytest.raises(ValueError, match="cannot take 1 numbers of 8 bytes"):
        tensors.write(found, array("q", [1]))


@pytest.mark.parametrize("shape", [(1,), (1000,), (3, 1 << 16)])
def test_memory_is_aligned(tensors: CpuArrays, shape: tuple[int, ...]) -> None:
    assert tensors.empty(shape, "float32").data_ptr() % 64 == 0


def test_handles_say_what_they_hold(tensors: CpuArrays) -> None:
    found, expected = counted(tensors, 2, 3)
    handle = found[1].handle
    assert handle.described() == (found.data_ptr() + 24, (3,), "int64")
    again = Array.of_handle(tensors, TensorHandle(tensors.libtorch, handle.given_away()))
    assert np.array_equal(again.numpy(), expected[1])


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "bfloat16", "uint8"])
def test_other_libraries_use_the_same_memory(tensors: CpuArrays, dtype: str) -> None:
    made = tensors.zeros((3, 4), dtype)
    theirs = torch.from_dlpack(made[1:])
    assert theirs.shape == (2, 4) and theirs.dtype == torch_dtype(dtype) and theirs.data_ptr() == made[1].data_ptr()
    theirs[0, 2] = 5
    assert made.tolist() == [[0] * 4, [0, 0, 5, 0], [0] * 4]
    if dtype != "bfloat16":
        assert np.from_dlpack(made).tolist() == made.tolist()


def test_memory_lives_as_long_as_its_readers(tensors: CpuArrays) -> None:
    before, owners = set(dlpack._GIVEN), []
    for keeps in (True, False):
        made, expected = counted(tensors, 5)
        owners.append(weakref.ref(made._owner))
        capsule = made.__dlpack__()
        theirs = torch.from_dlpack(made) if keeps else None
        del made, capsule
        gc.collect()
        assert theirs is None or theirs.tolist() == expected.tolist()
        del theirs
    gc.collect()
    assert set(dlpack._GIVEN) == before and [owner() for owner in owners] == [None, None]


ARRAYS = """
import os, torch
from concurrent.futures import Future
from gptoss_export.libtorch.installation import installation
from gptoss_export.libtorch.interface import Libtorch
from gptoss_export.runtime.without_torch.on_cpu import CpuArrays
loading = Future(); loading.set_result(Libtorch(installation(), False)); tensors = CpuArrays(loading)
"""
AT_THE_END = """
class Cycle: pass
cycle = Cycle(); cycle.itself = cycle
cycle.theirs = torch.from_dlpack(tensors.zeros((3,), "float32"))
cycle.unread = tensors.zeros((3,), "int64").__dlpack__()
"""
IN_A_CHILD = """
made = tensors.zeros((1 << 16,), "int64")
if (child := os.fork()) == 0:
    made.fill_(7)
    os._exit(0)
os.waitpid(child, 0)
assert made.tolist() == [0] * (1 << 16)
"""


@pytest.mark.parametrize("code", [AT_THE_END, IN_A_CHILD], ids=["readers at the end", "a forked child"])
def test_a_process(code: str) -> None:
    """A reader may be collected when the process ends. A child's arrays are its own."""
    done = subprocess.run([sys.executable, "-c", ARRAYS + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_reader_cannot_have(tensors: CpuArrays) -> None:
    made = tensors.zeros((3,), "float32")
    for options in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError, match="is given as it is, without a copy, and on its own device"):
            made.__dlpack__(**options)

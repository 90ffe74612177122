"""Handles of libtorch's tensors: how a compiled program takes and gives memory."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import NamedTuple

from .interface import Libtorch


class Described(NamedTuple):
    """Where the contiguous memory of a tensor is, and what it holds. dtype: torch's name without `torch.`"""

    address: int
    shape: tuple[int, ...]
    dtype: str


class TensorHandle:
    """A tensor of libtorch. Its memory is freed with this object, if it is libtorch's."""

    def __init__(self, library: Libtorch, handle: int) -> None:
        self._library, self._handle = library, handle
        delete = library.functions["aoti_torch_delete_tensor_object"]
        weakref.finalize(self, delete, handle).atexit = False  # the process gives back its memory itself

    @classmethod
    def of_memory(cls, library: Libtorch, described: Described, gpu: int | None) -> TensorHandle:
        """A tensor of memory that the caller keeps. gpu: the number of its GPU, None for the host."""
        shape = described.shape
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        strides = (ctypes.c_int64 * len(shape))(*(math.prod(shape[at + 1 :]) for at in range(len(shape))))
        numbers, made = library.numbers, ctypes.c_void_p()
        library.functions.call(
            "aoti_torch_create_tensor_from_blob_v2", described.address, len(shape), sizes, strides, 0,
            numbers[f"aoti_torch_dtype_{described.dtype}"],
            numbers["aoti_torch_device_type_cpu" if gpu is None else "aoti_torch_device_type_cuda"], gpu or 0,
            ctypes.byref(made), numbers["aoti_torch_layout_strided"], None, 0,
        )  # fmt: skip
        return cls(library, made.value or 0)

    def given_away(self) -> int:
        """A new handle of the same tensor. The function that gets it deletes it."""
        made = ctypes.c_void_p()
        self._library.functions.call("aoti_torch_new_tensor_handle", self._handle, ctypes.byref(made))
        return made.value or 0

    def described(self) -> Described:
        """Raises ValueError for a tensor that is not contiguous, and KeyError for a dtype that is not in DTYPES."""
        call, handle = self._library.functions.call, self._handle
        address, rank, dtype = ctypes.c_void_p(), ctypes.c_int64(), ctypes.c_int32()
        sizes, contiguous = ctypes.POINTER(ctypes.c_int64)(), ctypes.c_bool()
        call("aoti_torch_is_contiguous", handle, ctypes.byref(contiguous))
        if not contiguous:
            raise ValueError("found a tensor that is not contiguous")
        call("aoti_torch_get_data_ptr", handle, ctypes.byref(address))
        call("aoti_torch_get_dim", handle, ctypes.byref(rank))
        call("aoti_torch_get_sizes", handle, ctypes.byref(sizes))
        call("aoti_torch_get_dtype", handle, ctypes.byref(dtype))
        return Described(address.value or 0, tuple(sizes[: rank.value]), self._library.dtypes[dtype.value])


def given_away(handles: Sequence[TensorHandle]) -> ctypes.Array[ctypes.c_void_p]:
    """New handles of tensors, for a function that deletes them."""
    return (ctypes.c_void_p * len(handles))(*(handle.given_away() for handle in handles))

"""Early launch: kernels of a captured CUDA graph start before the kernel before them has ended.

A kernel whose name ends in `_pdl` calls `griddepcontrol.wait` before it touches what earlier kernels have written. So
the edge into such a kernel can be a programmatic one: the kernel is launched while the earlier one still runs, and
its weights are on their way when the earlier results come.

Compiled programs launch their kernels in the ordinary way. The edges are changed in the graph, between capture and
instantiation, through the CUDA driver (cuGraphRemoveDependencies, cuGraphAddDependencies).

CUDA driver API, "Graph Management"; CUDA programming guide, "Programmatic Dependent Launch".
"""

from __future__ import annotations

import ctypes
from collections import Counter

from .driver import call, version

SUFFIX = "_pdl"
_SINCE = 12030  # CUDA 12.3 brought edges of several kinds
_KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL
_PROGRAMMATIC_PORT, _PROGRAMMATIC_TYPE = 1, 1  # CU_GRAPH_KERNEL_NODE_PORT_, CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC


class _EdgeData(ctypes.Structure):
    _fields_ = [
        ("from_port", ctypes.c_ubyte), ("to_port", ctypes.c_ubyte), ("type", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte * 5),
    ]  # fmt: skip


class _KernelParameters(ctypes.Structure):
    _fields_ = [
        ("func", ctypes.c_void_p),
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        *((name, ctypes.c_void_p) for name in ("parameters", "extra", "kernel", "context")),
    ]  # fmt: skip


def launch_early(graph: int, capability: tuple[int, int]) -> int:
    """Make the edges into `_pdl` kernels of a cudaGraph_t programmatic; returns how many there are.

    capability  of the GPU, such as (9, 0)

    Only edges from one kernel to a kernel that follows nothing else are changed; one captured stream gives such
    edges. There are none on GPUs before sm_90, whose kernels do not wait, and with drivers that know no programmatic
    edges. Raises RunError where the driver refuses."""
    if version() < _SINCE or capability < (9, 0):
        return 0

    def name_of(node: int) -> str | None:
        kind, parameters, name = ctypes.c_int(), _KernelParameters(), ctypes.c_char_p()
        call("cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(kind))
        if kind.value != _KERNEL_NODE:
            return None
        call("cuGraphKernelNodeGetParams_v2", ctypes.c_void_p(node), ctypes.byref(parameters))
        if parameters.func:
            call("cuFuncGetName", ctypes.byref(name), ctypes.c_void_p(parameters.func))
        else:
            call("cuKernelGetName", ctypes.byref(name), ctypes.c_void_p(parameters.kernel))
        return (name.value or b"").decode()

    handle, count = ctypes.c_void_p(graph), ctypes.c_size_t()
    call("cuGraphGetEdges_v2", handle, None, None, None, ctypes.byref(count))
    before, after = (ctypes.c_void_p * count.value)(), (ctypes.c_void_p * count.value)()
    data = (_EdgeData * count.value)()
    call("cuGraphGetEdges_v2", handle, before, after, data, ctypes.byref(count))
    names = {node: name_of(node) for node in {*before, *after}}
    edges_into = Counter(after)
    changed = 0
    for earlier, later, kind in zip(before, after, data, strict=True):
        if names[earlier] is None or not (names[later] or "").endswith(SUFFIX) or edges_into[later] > 1:
            continue
        edge = (ctypes.c_void_p * 1)(earlier), (ctypes.c_void_p * 1)(later)
        call("cuGraphRemoveDependencies_v2", handle, *edge, ctypes.byref(kind), ctypes.c_size_t(1))
        early = _EdgeData(from_port=_PROGRAMMATIC_PORT, type=_PROGRAMMATIC_TYPE)
        call("cuGraphAddDependencies_v2", handle, *edge, ctypes.byref(early), ctypes.c_size_t(1))
        changed += 1
    return changed

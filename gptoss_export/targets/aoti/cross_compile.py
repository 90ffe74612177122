"""Compiling for a GPU that the machine does not have.

    with cross_compile("sm_90"):
        compile_to_files(...)

torch, Inductor and Triton get their answers from a table (compat/fake_gpu.py) and link without a CUDA toolkit
(compat/cuda_home.py). docs/targets.md says for which archs such code has run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...compat.cuda_home import header_problem, linking_without_toolkit
from ...compat.fake_gpu import GpuProperties, fake_gpu
from ...compat.versions import SUPPORTED, version_problem
from ...errors import BuildError

# CUDA programming guide, technical specifications by compute capability; the products' data sheets.
GPUS = {
    "sm_80": GpuProperties("NVIDIA A100", 8, 0, 108, 163 << 10, 40 << 20, 2048),
    "sm_86": GpuProperties("NVIDIA GeForce RTX 3090", 8, 6, 82, 99 << 10, 6 << 20, 1536),
    "sm_89": GpuProperties("NVIDIA L40S", 8, 9, 142, 99 << 10, 96 << 20, 1536),
    "sm_90": GpuProperties("NVIDIA H200", 9, 0, 132, 227 << 10, 50 << 20, 2048),
    "sm_100": GpuProperties("NVIDIA B200", 10, 0, 148, 227 << 10, 126 << 20, 2048),
    "sm_120": GpuProperties("NVIDIA GeForce RTX 5090", 12, 0, 170, 99 << 10, 96 << 20, 1536),
}


def problems() -> list[str]:
    """Why code for a GPU cannot be compiled on this machine; empty where it can."""
    found = [*map(version_problem, SUPPORTED), header_problem()]
    return [problem for problem in found if problem is not None]


@contextmanager
def cross_compile(arch: str) -> Iterator[None]:
    """Compile for `arch`, one of GPUS. Raises BuildError where that is not possible here."""
    if arch not in GPUS:
        raise BuildError(f"--arch {arch}: expected one of {', '.join(GPUS)}")
    if found := problems():
        raise BuildError(f"code for a GPU cannot be compiled here: {'; '.join(found)}")
    with fake_gpu(GPUS[arch]), linking_without_toolkit():
        yield

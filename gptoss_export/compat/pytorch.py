"""Private names of torch that the project calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def triton_op_body(op: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a torch.library.triton_op was made of: calling it keeps each kernel launch in a traced graph.

    Without it: a traced graph shows the op as one node, and nothing tells which kernels it launches.
    Since: torch 2.6. It can go when triton_op offers its function under a public name.
    """
    return op._abstract_fn

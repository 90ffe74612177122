"""The ops of the graph. A new op is one new file here and one line below."""

from __future__ import annotations

from . import attention, experts
from .op import Op

OPS: dict[str, Op] = {op.name: op for op in (attention.OP.define(), experts.OP.define())}

__all__ = ["OPS", "Op"]

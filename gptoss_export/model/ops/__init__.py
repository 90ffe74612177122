"""The ops of the graph. A new op is one new file here and one line below."""

from __future__ import annotations

from ..ops import attention, attention_sublayer, experts, experts_sublayer, kv_write, rotary, unembed
from .op import Op

OPS: dict[str, Op] = {
    op.name: op.define()
    for op in (
        attention.OP, experts.OP, rotary.OP, kv_write.OP, attention_sublayer.OP, experts_sublayer.OP, unembed.OP
    )  # fmt: skip
}

__all__ = ["OPS", "Op"]

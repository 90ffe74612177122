"""The kernels that this package offers, by op. A new kernel is one file and one line here."""

from __future__ import annotations

from gptoss_export.kernels.kernel import Kernel

from . import (
    attention,
    attention_sublayer,
    experts,
    experts_sublayer,
    grouped_linear,
    grouped_outer,
    kv_write,
    packed_attention,
    packed_attention_backward,
    rotary,
    rotate,
    sum_ranks,
    unembed,
)

KERNELS: dict[str, Kernel] = {
    "attention_sublayer": attention_sublayer.KERNEL,
    "experts_sublayer": experts_sublayer.KERNEL,
    "kv_write": kv_write.KERNEL,
    "experts": experts.KERNEL,
    "grouped_linear": grouped_linear.KERNEL,
    "grouped_outer": grouped_outer.KERNEL,
    "packed_attention": packed_attention.KERNEL,
    "packed_attention_backward": packed_attention_backward.KERNEL,
    "rotary": rotary.KERNEL,
    "rotate": rotate.KERNEL,
    "sink_attention": attention.KERNEL,
    "sum_ranks": sum_ranks.KERNEL,
    "unembed": unembed.KERNEL,
}

"""The sizes that onnxruntime's own ops take. A build refuses others: such a model fails at its first call, or computes
wrong values.

Sources: the checks of GroupQueryAttention and QMoE in onnxruntime's code (group_query_attention_helper.h,
group_query_attention.cc, moe_quantization.cc), and models of many sizes that were run on a CPU. Neither op limits the
number of experts, the choices of a token, the window, the vocabulary or the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...model.config import ModelConfig

_ROTARY_MULTIPLE = 16  # of head_dim: GroupQueryAttention rotates halves of whole vectors of 8 values
_CUDA_HEAD_DIM = 256  # the largest of its flash attention, which alone runs in bfloat16 on every GPU
_CUDA_HEADS = 1024  # it has a thread for each query head of a block
_QMOE_MULTIPLE = 64  # of other sizes QMoE computes wrong values, without an error


def size_problems(config: ModelConfig, device: str, portable: bool) -> list[str]:
    """What is wrong with a model's sizes for `device`, each with what to do. The portable model has none of these
    ops."""
    return [] if portable else list(_problems(config, device))


def _problems(config: ModelConfig, device: str) -> Iterator[str]:
    standard = "--portable" if device == "cpu" else "--device cpu --portable"
    advice = f"onnxruntime's GroupQueryAttention; build with {standard}, which uses standard operators"
    if config.head_dim % _ROTARY_MULTIPLE:
        yield f"head_dim: found {config.head_dim}, expected a multiple of {_ROTARY_MULTIPLE} for {advice}"
    if device != "cuda":
        return
    if config.head_dim > _CUDA_HEAD_DIM:
        yield f"head_dim: found {config.head_dim}, expected at most {_CUDA_HEAD_DIM} for {advice}"
    if config.num_attention_heads > _CUDA_HEADS:
        yield f"num_attention_heads: found {config.num_attention_heads}, expected at most {_CUDA_HEADS} for {advice}"
    for name in ("hidden_size", "intermediate_size"):
        if (size := getattr(config, name)) % _QMOE_MULTIPLE:
            yield (
                f"{name}: found {size}, expected a multiple of {_QMOE_MULTIPLE} for onnxruntime's QMoE; build with "
                "--device cpu"
            )

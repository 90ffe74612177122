"""The model for onnxruntime's CUDA provider, in bfloat16 with a residual stream of float32.

Attention is GroupQueryAttention: it takes q, k and v as one matrix, rotates them and writes the cache in place. The
experts are QMoE with `quant_type` fp4, which is MXFP4. It reads the checkpoint's scales as they are stored, and the
blocks in a layout of its own (repack.py). It chooses the experts itself, from router logits in bfloat16.

The number of kernel launches decides how long a decode step takes. So a sum with the residual stream is not written at
once: the norm that follows, SkipSimplifiedLayerNormalization, computes the sum, the bias and the norm in one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import TensorProto

from ..base_compiler import CompileJob
from .graph import MICROSOFT
from .qmoe import qmoe
from .repack import repack_experts
from .writer import Attention, ExpertWeights, Writer

IR_VERSION = 12  # the first with E8M0, the dtype of the scales


@dataclass(frozen=True)
class PendingSum:
    """A residual stream [T, H] and what the next norm adds to it: [T, H], and a bias [H] or ''."""

    x: str
    added: str
    bias: str = ""


class CudaWriter(Writer):
    ir_version = IR_VERSION
    dtype = TensorProto.BFLOAT16

    def __init__(self, job: CompileJob) -> None:
        super().__init__(job)
        self.files |= repack_experts(job)

    def rotation(self, inv_freq: str, concentration: float) -> tuple[str, str]:
        cos, sin = super().rotation(inv_freq, concentration)
        return self.g.cast(cos, self.dtype), self.g.cast(sin, self.dtype)

    def norm(self, x: str | PendingSum, weight: str, eps: float) -> tuple[str, str]:
        if isinstance(x, str):
            return self.g.cast(self.rms_norm(x, weight, eps), self.dtype), x
        normed, _, _, total = self.g.add(
            "SkipSimplifiedLayerNormalization",
            x.x,
            x.added,
            self.cast(weight, TensorProto.FLOAT),
            x.bias,
            outputs=4,
            domain=MICROSOFT,
            epsilon=eps,
        )
        return self.g.cast(normed, self.dtype), total

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        return self.g.add("Gemm", x, self.weight(weight), *([self.weight(bias)] if bias else []), transB=1)

    def attention(self, qkv: str, sizes: Sequence[int], given: Attention) -> str:
        keys, values = given.k_cache, given.v_cache
        outputs = [f"{keys.present}.out", keys.present, values.present]
        packed = self.g.reshape(qkv, self.batch, -1, sum(sizes)), "", ""
        self.attend([*packed, keys.past, values.past], given, self.weight(given.sinks), outputs)
        return self.g.reshape(outputs[0], -1, sizes[0])

    def project(self, x: str, out: str, weight: str, bias: str) -> PendingSum:
        return PendingSum(
            x, self.g.cast(self.linear(out, weight), TensorProto.FLOAT), self.cast(bias, TensorProto.FLOAT)
        )

    def experts(
        self, x: str, normed: str, logits: str, packed: ExpertWeights, choices: int, alpha: float, limit: float
    ) -> PendingSum:
        weights = [
            self.stored(packed.gate_up_weight),
            self.stored(packed.gate_up_scales),
            self.weight(packed.gate_up_bias),
            self.stored(packed.down_weight),
            self.stored(packed.down_scales),
            self.weight(packed.down_bias),
        ]
        count = self.config.num_local_experts
        mixed = qmoe(self.g, normed, logits, weights, count, choices, alpha, limit)
        return PendingSum(x, self.g.cast(mixed, TensorProto.FLOAT))

"""The model for a CPU, in float32.

    CpuWriter       attention is onnxruntime's GroupQueryAttention. It writes the cache in place when past and present
                    are bound to one buffer of full length. The experts are the function gptoss::Mxfp4Experts
    PortableWriter  attention is a function of standard operators too, gptoss::SinkAttention (functions.py)

onnxruntime's own experts are not used: on a CPU its QMoE has no MXFP4, and with 8-bit integer weights, which would be
exact, it rounds the activations to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import FunctionProto, TensorProto

from .functions import mxfp4_experts, sink_attention
from .graph import OWN
from .model_files import ATTENTION_MASK
from .writer import Attention, ExpertWeights, Writer


class CpuWriter(Writer):
    ir_version = 10  # that of opset 21
    dtype = TensorProto.FLOAT

    def functions(self) -> list[FunctionProto]:
        return [mxfp4_experts()]

    def norm(self, x: str, weight: str, eps: float) -> tuple[str, str]:
        return self.rms_norm(x, weight, eps), x

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        return self.g.add("Gemm", x, self.weight(weight), *([self.weight(bias)] if bias else []), transB=1)

    def attention(self, qkv: str, sizes: Sequence[int], given: Attention) -> str:
        parts = self.g.add("Split", qkv, self.g.constant(sizes), outputs=3, axis=1)
        rows = [self.g.reshape(part, self.batch, -1, size) for part, size in zip(parts, sizes, strict=True)]
        rows[1:] = self._marked(*rows[1:])
        keys, values = given.k_cache, given.v_cache
        outputs = [f"{keys.present}.out", keys.present, values.present]
        self.attend([*rows, keys.past, values.past], given, self.weight(given.sinks), outputs)
        return self.g.reshape(outputs[0], -1, sizes[0])

    def _marked(self, key: str, value: str) -> tuple[str, str]:
        """Keys and values [B, S, Hkv D] as gptoss::kv_write stores them (gptoss_export/model/ops/kv_write.py).

        Attention masks scores, which are made of keys, for each query alone. But it multiplies all values with all
        shares, and zero times NaN is NaN. So where a value is NaN or infinity, it becomes 0 and its key becomes NaN.
        """
        largest = self.g.constant(np.finfo(np.float32).max, np.float32)
        finite = self.g.add("LessOrEqual", self.g.add("Abs", value), largest)
        return (
            self.g.add("Where", finite, key, self.g.constant(np.nan, np.float32)),
            self.g.add("Where", finite, value, self.g.constant(0, np.float32)),
        )

    def project(self, x: str, out: str, weight: str, bias: str) -> str:
        return self.g.add("Add", x, self.linear(out, weight, bias))

    def experts(
        self, x: str, normed: str, logits: str, packed: ExpertWeights, choices: int, alpha: float, limit: float
    ) -> str:
        # Of equal logits TopK takes the lower index, by its definition. So does the op.
        best, indices = self.g.add("TopK", logits, self.g.constant([choices]), outputs=2)
        weights = [self.stored(name) for name in vars(packed).values()]
        shares = self.g.add("Softmax", best, axis=1)
        mixed = self.g.add("Mxfp4Experts", normed, shares, indices, *weights, domain=OWN, alpha=alpha, limit=limit)
        return self.g.add("Add", x, mixed)


class PortableWriter(CpuWriter):
    uses_contributed_ops = False

    def functions(self) -> list[FunctionProto]:
        return [*super().functions(), sink_attention()]

    def attend(self, inputs: Sequence[str], given: Attention, sinks: str, outputs: Sequence[str]) -> None:
        self.g.add(
            "SinkAttention",
            *inputs,
            given.cos,
            given.sin,
            sinks,
            ATTENTION_MASK,
            outputs=outputs,
            domain=OWN,
            window=given.window or -1,
            scale=given.scale,
        )

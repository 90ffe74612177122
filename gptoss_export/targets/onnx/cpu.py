"""The model for a CPU, in float32: casts of the weights are folded by the runtime when it loads.

    onnxruntime   attention is GroupQueryAttention, which writes the cache in place when past and present are bound to one
                  buffer of full length; the experts are the function gptoss::Mxfp4Experts
    portable      attention is a function of standard operators too, gptoss::SinkAttention (functions.py)

onnxruntime's QMoE has no MXFP4 on a CPU; as 8-bit integers the weights would be exact, but its kernel rounds activations to
8 bits, which is 0.7 % of error where the function has 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import FunctionProto, TensorProto

from .functions import mxfp4_experts, sink_attention
from .graph import OWN
from .writer import Cache, Experts, Writer


class Cpu(Writer):
    ir_version = 10  # that of opset 21
    dtype = TensorProto.FLOAT

    def functions(self) -> list[FunctionProto]:
        return [mxfp4_experts()]

    def norm(self, x: str, weight: str, eps: float) -> tuple[str, str]:
        return self.normed(x, weight, eps), x

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        return self.g.add("Gemm", x, self._weight(weight), *([self._weight(bias)] if bias else []), transB=1)

    def attention(
        self, qkv: str, sizes: Sequence[int], k_cache: Cache, v_cache: Cache, cos: str, sin: str, sinks: str, window: int,
        scale: float,
    ) -> str:  # fmt: skip
        parts = self.g.add("Split", qkv, self.g.constant(sizes), outputs=3, axis=1)
        rows = [self.g.reshape(part, self.batch, -1, size) for part, size in zip(parts, sizes, strict=True)]
        outputs = [f"{k_cache.present}.out", k_cache.present, v_cache.present]
        self.attend([*rows, k_cache.past, v_cache.past], cos, sin, self._weight(sinks), window, scale, outputs)
        return self.g.reshape(outputs[0], -1, sizes[0])

    def project(self, x: str, out: str, weight: str, bias: str) -> str:
        return self.g.add("Add", x, self.linear(out, weight, bias))

    def experts(
        self, x: str, normed: str, logits: str, packed: Experts, choices: int, alpha: float, limit: float
    ) -> str:
        best, indices = self.g.add("TopK", logits, self.g.constant([choices]), outputs=2)  # of equals the lower, by its definition
        weights = [self.stored(name) for name in vars(packed).values()]
        shares = self.g.add("Softmax", best, axis=1)
        mixed = self.g.add("Mxfp4Experts", normed, shares, indices, *weights, domain=OWN, alpha=alpha, limit=limit)
        return self.g.add("Add", x, mixed)

    def _weight(self, name: str) -> str:
        return self.cast(name, self.dtype)


class Portable(Cpu):
    contributed = False

    def functions(self) -> list[FunctionProto]:
        return [*super().functions(), sink_attention()]

    def attend(
        self, given: Sequence[str], cos: str, sin: str, sinks: str, window: int, scale: float, outputs: Sequence[str]
    ) -> None:
        self.g.add(
            "SinkAttention", *given, cos, sin, sinks, "attention_mask", outputs=outputs, domain=OWN, window=window or -1,
            scale=scale,
        )  # fmt: skip

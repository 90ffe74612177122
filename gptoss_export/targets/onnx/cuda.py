"""The model for onnxruntime's CUDA provider, in bfloat16 with a residual stream of float32.

Attention is GroupQueryAttention, which takes q, k and v as one matrix, rotates them and writes the cache in place. The experts
are QMoE with `quant_type` fp4, which is MXFP4: it takes the checkpoint's scales as they are stored, and the blocks in a layout
of its own (repack.py). It chooses the experts by itself, from router logits in bfloat16.

A sum with the residual stream is left open until the norm that follows, since SkipSimplifiedLayerNormalization does both, and
adds a bias too. Every op saved is a kernel launched less: a decode step has some 12 a layer, whose own latency is a good part
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import TensorProto

from ...errors import BuildError, raise_all
from ..target import Plan
from .graph import MICROSOFT
from .qmoe import qmoe
from .repack import repack_experts
from .writer import Cache, Experts, Writer


@dataclass(frozen=True)
class _Open:
    """A residual stream [T, H] and what is still to be added to it: [T, H], and a bias [H] or ''."""

    x: str
    added: str
    bias: str = ""


_STEP = 64  # with other sizes QMoE fails in no way but its values (onnxruntime-gpu 1.31.1, H200)


class Cuda(Writer):
    ir_version = 12  # the first with E8M0
    dtype = TensorProto.BFLOAT16

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        sizes = {"hidden_size": plan.config.hidden_size, "intermediate_size": plan.config.intermediate_size}
        wrong = [f"{name}: found {size}, expected a multiple of {_STEP}" for name, size in sizes.items() if size % _STEP]
        raise_all(BuildError, "config.json: sizes that onnxruntime's QMoE computes wrongly; build --device cpu", wrong)
        self._repacked = repack_experts(plan)
        self.files |= {part.file for part in self._repacked.values()}

    def tables(self, inv_freq: str, concentration: float) -> tuple[str, str]:
        return tuple(self.g.cast(table, self.dtype) for table in super().tables(inv_freq, concentration))

    def norm(self, x: str | _Open, weight: str, eps: float) -> tuple[str, str]:
        if isinstance(x, str):
            return self.g.cast(self.normed(x, weight, eps), self.dtype), x
        normed, _, _, total = self.g.add(
            "SkipSimplifiedLayerNormalization", x.x, x.added, self.cast(weight, TensorProto.FLOAT), x.bias, outputs=4,
            domain=MICROSOFT, epsilon=eps,
        )  # fmt: skip
        return self.g.cast(normed, self.dtype), total

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        return self.g.add("Gemm", x, self.stored(weight), *([self.stored(bias)] if bias else []), transB=1)

    def attention(
        self, qkv: str, sizes: Sequence[int], k_cache: Cache, v_cache: Cache, cos: str, sin: str, sinks: str, window: int,
        scale: float,
    ) -> str:  # fmt: skip
        outputs = [f"{k_cache.present}.out", k_cache.present, v_cache.present]
        packed = self.g.reshape(qkv, self.batch, -1, sum(sizes)), "", ""
        self.attend([*packed, k_cache.past, v_cache.past], cos, sin, self.stored(sinks), window, scale, outputs)
        return self.g.reshape(outputs[0], -1, sizes[0])

    def project(self, x: str, out: str, weight: str, bias: str) -> _Open:
        return _Open(x, self.g.cast(self.linear(out, weight), TensorProto.FLOAT), self.cast(bias, TensorProto.FLOAT))

    def experts(
        self, x: str, normed: str, logits: str, packed: Experts, choices: int, alpha: float, limit: float
    ) -> _Open:
        weights = []
        for matrix in "gate_up", "down":
            blocks, scales, bias = (getattr(packed, f"{matrix}_{part}") for part in ("blocks", "scales", "bias"))
            weights += [self._blocks(blocks), self._scales(scales), self.stored(bias)]
        count = self.config.num_local_experts
        mixed = qmoe(self.g, normed, logits, weights, count, choices, alpha, limit)
        return _Open(x, self.g.cast(mixed, TensorProto.FLOAT))

    def _blocks(self, name: str) -> str:
        part = self._repacked[name]
        self.initializers.append(self._stored.initializer(name, part.file, part.tensor))
        return name

    def _scales(self, name: str) -> str:
        (part,) = self._weights[name].parts
        scales = self._stored.initializer(name, part.file, part.tensor, dtype=TensorProto.FLOAT8E8M0)
        self.initializers.append(scales)
        return name

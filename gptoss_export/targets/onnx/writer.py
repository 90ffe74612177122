"""How the parts of the model are written as nodes: what the writers for the CPU (cpu.py) and for CUDA (cuda.py) share.

Weights are external data: the safetensors files of the artifact, by offset, in the dtype that they are stored in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnx import FunctionProto, TensorProto

from ..target import Plan
from .graph import MICROSOFT, Nodes, Stored


@dataclass(frozen=True)
class Cache:
    """A layer's cache of keys or values: the names of the graph's input and output for it."""

    past: str
    present: str


@dataclass(frozen=True)
class Experts:
    """The names of a layer's expert weights."""

    gate_up_blocks: str
    gate_up_scales: str
    gate_up_bias: str
    down_blocks: str
    down_scales: str
    down_bias: str


class Writer(ABC):
    """The nodes so far, and how each part of the model is written. Rows are tokens: [T, H], T = B S.

    What stands for the residual stream after the embedding is the writer's own.
    """

    ir_version: ClassVar[int]
    dtype: ClassVar[int]  # of caches and logits
    contributed: ClassVar[bool] = True  # whether it uses onnxruntime's own ops

    def __init__(self, plan: Plan) -> None:
        self.config, self.max_context = plan.config, plan.shapes.max_context
        self.g = Nodes()
        self.batch = self.g.size("input_ids", 0)
        self.initializers: list[TensorProto] = []
        self.files = {part.file for weight in plan.weights.values() for part in weight.parts}
        self._weights, self._stored = plan.weights, Stored(plan.folder)
        self._known: dict[str, str] = {}
        self._cast: dict[tuple[str, int], str] = {}
        if self.contributed:
            self._last, self._total = self._lengths()

    def functions(self) -> list[FunctionProto]:
        """The functions that the nodes call."""
        return []

    def stored(self, name: str) -> str:
        """A weight as it is stored; one that is made of several tensors is put together by the runtime."""
        if name not in self._known:
            parts = self._weights[name].parts
            labels = [name if len(parts) == 1 else f"{name}.{index}" for index in range(len(parts))]
            for label, part in zip(labels, parts, strict=True):
                self.initializers.append(self._stored.initializer(label, part.file, part.tensor))
            self._known[name] = labels[0] if len(parts) == 1 else self.g.add("Concat", *labels, axis=0)
        return self._known[name]

    def cast(self, name: str, dtype: int) -> str:
        """A weight in another dtype; the runtime does that when it loads."""
        if (name, dtype) not in self._cast:
            self._cast[name, dtype] = self.g.cast(self.stored(name), dtype)
        return self._cast[name, dtype]

    def _lengths(self) -> tuple[str, str]:
        """What GroupQueryAttention wants of the mask: [B] int32 tokens of each sequence less one; int32, the most of them."""
        ones = self.g.reduce("ReduceSum", "attention_mask", 1)
        last = self.g.cast(self.g.add("Sub", ones, self.g.constant(1)), TensorProto.INT32)
        return last, self.g.cast(self.g.add("Squeeze", self.g.size("attention_mask", 1)), TensorProto.INT32)

    def tables(self, inv_freq: str, concentration: float) -> tuple[str, str]:
        """Cosines and sines [C + 1, D / 2] by position in place of values by token: attention rotates by itself."""
        places = self.g.constant(np.arange(self.max_context + 1)[:, None], np.float32)  # an idle sequence may be full
        angles = self.g.add("Mul", places, self.g.reshape(self.cast(inv_freq, TensorProto.FLOAT), 1, -1))
        scale = self.g.constant(concentration, np.float32)
        return tuple(self.g.add("Mul", self.g.add(turn, angles), scale) for turn in ("Cos", "Sin"))

    def normed(self, x: str, weight: str, eps: float) -> str:
        """RMS norm of rows [T, H] float32, by standard operators."""
        mean = self.g.reduce("ReduceMean", self.g.add("Mul", x, x), -1, keepdims=1)
        root = self.g.add("Sqrt", self.g.add("Add", mean, self.g.constant(eps, np.float32)))
        return self.g.add("Mul", self.g.add("Div", x, root), self.cast(weight, TensorProto.FLOAT))

    def embedding(self, weight: str, tokens: str) -> str:
        """tokens [B, S] int64 to the residual stream: [T, H] float32."""
        rows = self.g.cast(self.g.add("Gather", self.stored(weight), tokens), TensorProto.FLOAT)
        return self.g.reshape(rows, -1, self.config.hidden_size)

    def attend(
        self, given: Sequence[str], cos: str, sin: str, sinks: str, window: int, scale: float, outputs: Sequence[str]
    ) -> None:
        """Attention over query, key, value and both caches, rotation and cache writes included, by onnxruntime's own op."""
        self.g.add(
            "GroupQueryAttention", *given, self._last, self._total, cos, sin, "", "", sinks, outputs=outputs,
            domain=MICROSOFT, num_heads=self.config.num_attention_heads, kv_num_heads=self.config.num_key_value_heads,
            scale=scale, do_rotary=1, local_window_size=window or -1,
        )  # fmt: skip

    @abstractmethod
    def norm(self, x: Any, weight: str, eps: float) -> tuple[str, Any]:
        """RMS norm of the residual stream; its rows, and the stream to go on with."""

    @abstractmethod
    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        """x [T, K] times weight [N, K], plus bias [N]."""

    @abstractmethod
    def attention(
        self, qkv: str, sizes: Sequence[int], k_cache: Cache, v_cache: Cache, cos: str, sin: str, sinks: str, window: int,
        scale: float,
    ) -> str:  # fmt: skip
        """qkv [T, Hq D + 2 Hkv D], whose parts have `sizes`, to [T, Hq D]; RoPE and caches included."""

    @abstractmethod
    def project(self, x: Any, out: str, weight: str, bias: str) -> Any:
        """The residual stream plus `linear(out, weight, bias)`."""

    @abstractmethod
    def experts(self, x: Any, normed: str, logits: str, packed: Experts, choices: int, alpha: float, limit: float) -> Any:
        """The residual stream plus the chosen experts' output for normed [T, H], by router logits [T, E]."""

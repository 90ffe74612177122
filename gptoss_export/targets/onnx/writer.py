"""How each part of the model becomes nodes. What writer_cpu.py and writer_cuda.py share.

Weights are external data: the safetensors files of the artifact, by offset, in the dtype in which they are stored. A
cast whose result is the same in every call is folded by the runtime when it loads the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from onnx import FunctionProto, TensorProto

from ..base_compiler import CompileJob
from .graph import MICROSOFT, Nodes, initializer_proto
from .model_files import ATTENTION_MASK, INPUT_IDS, CacheNames
from .model_proto import Initializer
from .stored_tensors import StoredTensors, initializers

Stream: TypeAlias = Any  # what stands for the residual stream: the name of a value, or a class of the writer's own


@dataclass(frozen=True)
class ExpertWeights:
    """The names of a layer's expert weights, in the order of gptoss::experts."""

    gate_up_weight: str
    gate_up_scales: str
    gate_up_bias: str
    down_weight: str
    down_scales: str
    down_bias: str


@dataclass(frozen=True)
class Attention:
    """What attention takes besides queries, keys and values.

    cos, sin: values [C + 1, D / 2] by position. sinks: a weight [Hq]. window: tokens that a query sees; 0: all.
    """

    k_cache: CacheNames
    v_cache: CacheNames
    cos: str
    sin: str
    sinks: str
    window: int
    scale: float


class Writer(ABC):
    """The nodes so far, and how each part of the model is written. Rows are tokens: [T, H], T = B S."""

    ir_version: ClassVar[int]
    dtype: ClassVar[int]  # of caches and logits
    uses_contributed_ops: ClassVar[bool] = True  # ops of onnxruntime's own

    def __init__(self, job: CompileJob) -> None:
        self.config, self.max_context = job.config, job.sizes.max_context
        self.g = Nodes()
        self.batch = self.g.size(INPUT_IDS, 0)
        self.initializers: list[TensorProto] = []
        self.files = {part.file for weight in job.weights.values() for part in weight.parts}
        self._weights, self._device, self._tensors = job.weights, job.device, StoredTensors(job.folder)
        self._stored: dict[str, str] = {}
        self._cast: dict[tuple[str, int], str] = {}
        if self.uses_contributed_ops:
            self._last, self._total = self._lengths()

    def functions(self) -> list[FunctionProto]:
        """The functions that the nodes call."""
        return []

    def stored(self, name: str) -> str:
        """A weight in its stored dtype, or in float32 if its parts have several. The runtime joins the parts."""
        if name not in self._stored:
            found = self._initializers(name)
            self.initializers += [initializer_proto(label, item) for label, item in found.items()]
            labels = list(found)
            if len(self._types(name)) > 1:
                labels = [self.g.cast(label, TensorProto.FLOAT) for label in labels]
            self._stored[name] = labels[0] if len(labels) == 1 else self.g.add("Concat", *labels, axis=0)
        return self._stored[name]

    def cast(self, name: str, dtype: int) -> str:
        """A weight in a dtype of the model's."""
        if self._types(name) == {dtype}:
            return self.stored(name)
        if (name, dtype) not in self._cast:
            self._cast[name, dtype] = self.g.cast(self.stored(name), dtype)
        return self._cast[name, dtype]

    def weight(self, name: str) -> str:
        """A weight in the dtype that the model computes in."""
        return self.cast(name, self.dtype)

    def _types(self, name: str) -> set[int]:
        """The ONNX types of a weight's parts."""
        return {item.type for item in self._initializers(name).values()}

    def _initializers(self, name: str) -> dict[str, Initializer]:
        return initializers(name, self._weights[name], self._device, self._tensors)

    def rotation(self, inv_freq: str, concentration: float) -> tuple[str, str]:
        """Cosines and sines [C + 1, D / 2] by position: attention looks up those of its tokens.

        gptoss::rotary, which this stands for, has them by token. Row C is for an idle slot that is full.
        """
        positions = self.g.constant(np.arange(self.max_context + 1)[:, None], np.float32)
        angles = self.g.add("Mul", positions, self.g.reshape(self.cast(inv_freq, TensorProto.FLOAT), 1, -1))
        scale = self.g.constant(concentration, np.float32)
        cos, sin = (self.g.add("Mul", self.g.add(function, angles), scale) for function in ("Cos", "Sin"))
        return cos, sin

    def rms_norm(self, x: str, weight: str, eps: float) -> str:
        """RMS norm of rows [T, H] float32, by standard operators."""
        mean = self.g.reduce("ReduceMean", self.g.add("Mul", x, x), -1, keepdims=1)
        root = self.g.add("Sqrt", self.g.add("Add", mean, self.g.constant(eps, np.float32)))
        return self.g.add("Mul", self.g.add("Div", x, root), self.cast(weight, TensorProto.FLOAT))

    def embedding(self, weight: str, tokens: str) -> str:
        """tokens [B, S] int64 to the residual stream: [T, H] float32."""
        rows = self.g.cast(self.g.add("Gather", self.stored(weight), tokens), TensorProto.FLOAT)
        return self.g.reshape(rows, -1, self.config.hidden_size)

    def attend(self, inputs: Sequence[str], given: Attention, sinks: str, outputs: Sequence[str]) -> None:
        """Attention of onnxruntime's own: it rotates, and writes the caches.

        inputs: query, key, value and both caches. outputs: the names of the result and of both caches.
        """
        self.g.add(
            "GroupQueryAttention",
            *inputs,
            self._last,
            self._total,
            given.cos,
            given.sin,
            "",
            "",
            sinks,
            outputs=outputs,
            domain=MICROSOFT,
            num_heads=self.config.num_attention_heads,
            kv_num_heads=self.config.num_key_value_heads,
            scale=given.scale,
            do_rotary=1,
            local_window_size=given.window or -1,
        )

    @abstractmethod
    def norm(self, x: Stream, weight: str, eps: float) -> tuple[str, Stream]:
        """RMS norm of the residual stream: rows [T, H], and the stream that later parts add to."""

    @abstractmethod
    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        """x [T, K] times weight [N, K], plus bias [N]."""

    @abstractmethod
    def attention(self, qkv: str, sizes: Sequence[int], given: Attention) -> str:
        """qkv [T, Hq D + 2 Hkv D], whose parts have `sizes`, to [T, Hq D]; RoPE and cache writes included."""

    @abstractmethod
    def project(self, x: Stream, out: str, weight: str, bias: str) -> Stream:
        """The residual stream plus `linear(out, weight, bias)`."""

    @abstractmethod
    def experts(
        self, x: Stream, normed: str, logits: str, packed: ExpertWeights, choices: int, alpha: float, limit: float
    ) -> Stream:
        """The residual stream plus the chosen experts' output for normed [T, H], by router logits [T, E]."""

    def _lengths(self) -> tuple[str, str]:
        """What GroupQueryAttention takes instead of the mask.

        [B] int32: the tokens of each sequence less one. int32: the tokens of the longest.
        """
        ones = self.g.reduce("ReduceSum", ATTENTION_MASK, 1)
        last = self.g.cast(self.g.add("Sub", ones, self.g.constant(1)), TensorProto.INT32)
        return last, self.g.cast(self.g.add("Squeeze", self.g.size(ATTENTION_MASK, 1)), TensorProto.INT32)

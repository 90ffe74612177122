"""The factors of LoRA adapters that an artifact takes while it runs: which matrices they change, their names and
shapes. Imports no torch: a manifest is checked where there is none.

An artifact with adapter slots has room for several adapters. For each matrix W [out, in] that an adapter may change it
has two stacked inputs, A [slots, rank, in] and B [slots, out, rank]; experts have A [slots, experts, rank, in] and
B [slots, experts, out, rank]. A product with W then has B (A x) of the adapter added. An adapter of a smaller rank is
padded with zeros, and its scale is multiplied into B when it is loaded. A table says which adapter each sequence uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import ModelConfig
from .parameters import Parameter

ADAPTER_TABLE = "adapters"  # [sequence slots] int64: the adapter slot of each sequence, NO_ADAPTER: none
NO_ADAPTER = -1
LARGEST_RANK = 64  # of --adapter-rank
MOST_ADAPTERS = 256  # of --adapter-slots
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class AdaptedMatrix:
    """A matrix [outputs, inputs] of a layer that an adapter may change. experts: how many experts have one; 0: it is of
    no expert."""

    name: str
    inputs: int
    outputs: int
    experts: int = 0

    def shapes(self, slots: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B of all adapter slots."""
        front = (slots, self.experts) if self.experts else (slots,)
        return (*front, rank, self.inputs), (*front, self.outputs, rank)


def adapted_matrices(config: ModelConfig) -> tuple[AdaptedMatrix, ...]:
    """The matrices of a layer that an adapter may change."""
    hidden, inter, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    heads, kv_heads = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    return (
        AdaptedMatrix("q_proj", hidden, heads),
        AdaptedMatrix("k_proj", hidden, kv_heads),
        AdaptedMatrix("v_proj", hidden, kv_heads),
        AdaptedMatrix("o_proj", heads, hidden),
        AdaptedMatrix("gate_up_proj", hidden, 2 * inter, experts),
        AdaptedMatrix("down_proj", inter, hidden, experts),
    )


def factor_names(layer: int, matrix: str) -> tuple[str, str]:
    """The names of A and B of a matrix, as programs have them."""
    return f"adapter.{layer}.{matrix}.a", f"adapter.{layer}.{matrix}.b"


def adapter_factors(config: ModelConfig, slots: int, rank: int, dtype: str) -> tuple[Parameter, ...]:
    """The factors of all layers, as programs take them."""
    return tuple(
        Parameter(name, shape, dtype)
        for layer in range(config.num_hidden_layers)
        for matrix in adapted_matrices(config)
        for name, shape in zip(factor_names(layer, matrix.name), matrix.shapes(slots, rank), strict=True)
    )

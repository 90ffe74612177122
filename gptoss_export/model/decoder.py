"""The gpt-oss decoder in plain PyTorch, over the ops of `model.ops`.

It is built on the meta device and never holds weights: `compiler.export` traces it with weights, caches and tokens as
inputs. Parameters have Hugging Face's names, with two exceptions: q, k and v are one matrix (`qkv_proj`), and the RoPE
frequencies are a parameter, because a program has no constants.

A layer is two ops, one for each sublayer. The modules hold the weights under the names of the checkpoint. Each op's
file says what it computes. Matrix products are in the dtype of the weights; the residual stream, RMSNorm, RoPE, the
router and all softmaxes are in float32.

With adapters a layer is made of smaller ops, since LoRA changes products inside of the sublayers. Without them nothing
is different: an artifact without adapter slots has the same graphs as before.

With a `ranks.RankConfig` it is what one of several ranks computes. A sublayer then computes the rank's part, and adds
the parts of all ranks to the residual stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn

from . import ops  # noqa: F401  (registers torch.ops.gptoss)
from .adapter_factors import ADAPTER_TABLE
from .adapters import Adapters, LayerAdapters
from .config import ModelConfig, Yarn
from .dtypes import torch_dtype
from .ops.attention_sublayer import attended
from .ops.experts_sublayer import route
from .ops.norm import rms_norm
from .places import FIRST_MEMORY, WHICH, Box
from .ranks import share_of_first
from .sums_of_ranks import best_of_ranks

Caches: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer
Pages: TypeAlias = Mapping[str, torch.Tensor]  # by kind of layer: the table of its pages [slots, X] int32
Rope: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # cos and sin [T, head_dim / 2] float32


def yarn_inv_freq(yarn: Yarn, head_dim: int) -> torch.Tensor:
    """RoPE frequencies [head_dim / 2], float32, in radians a position (arXiv:2309.00071, section 3.2).

    Dimensions that turn more than beta_fast times within the original context keep their frequency. Those that turn
    less than beta_slow times are slowed by `factor`. A linear ramp joins the two."""
    half = torch.arange(0, head_dim, 2, dtype=torch.float32)
    frequency = 1.0 / (yarn.theta ** (half / head_dim))

    def dimension_of(turns: float) -> float:
        period = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(period) / (2 * math.log(yarn.theta))

    low, high = dimension_of(yarn.beta_fast), dimension_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    slowed = ((half / 2 - low) / width).clamp(0, 1)
    return frequency / yarn.factor * slowed + frequency * (1 - slowed)


class RMSNorm(nn.Module):
    """The weight of an RMSNorm. The op that begins with the norm applies it."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype))
        self.eps = eps


class RotaryEmbedding(nn.Module):
    """positions [T] to cos and sin [T, head_dim / 2], float32, multiplied by YaRN's concentration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inv_freq = nn.Parameter(torch.empty(config.head_dim // 2, dtype=torch.float32))
        self.concentration = config.rope.concentration

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.gptoss.rotary(positions=positions, inv_freq=self.inv_freq, concentration=self.concentration)


class Attention(nn.Module):
    """The weights of gptoss::attention_sublayer, without its norm."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.window, self.kind = config.window(layer), config.layer_types[layer]
        self.head_dim, self.scale = head_dim, head_dim**-0.5
        width = (heads + 2 * config.num_key_value_heads) * head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, width, dtype=dtype)
        self.o_proj = nn.Linear(heads * head_dim, config.hidden_size, dtype=dtype)
        self.sinks = nn.Parameter(torch.empty(heads, dtype=dtype))
        self.ranks = config.ranks

    def forward(
        self,
        x: torch.Tensor,
        norm: RMSNorm,
        rope: Rope,
        slots: torch.Tensor,
        positions: torch.Tensor,
        pages: Pages,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        places: torch.Tensor | None,
        adapters: LayerAdapters | None,
    ) -> torch.Tensor:
        """x [T, H] float32; positions [N, L] with N L = T; caches are written in place. places: where ranks share the
        model, model/places.py."""
        cos, sin = rope
        arguments = {
            "x": x,
            "norm_weight": norm.weight,
            "qkv_weight": self.qkv_proj.weight,
            "qkv_bias": self.qkv_proj.bias,
            "o_weight": self.o_proj.weight,
            "o_bias": self.o_proj.bias,
            "sinks": self.sinks,
            "k_cache": k_cache,
            "v_cache": v_cache,
            "pages": pages[self.kind],
            "cos": cos,
            "sin": sin,
            "slots": slots,
            "positions": positions,
            "window": self.window,
            "scale": self.scale,
            "eps": norm.eps,
        }
        if adapters is not None:
            return x + attended(**arguments, delta=adapters.delta)
        return torch.ops.gptoss.attention_sublayer(**arguments, places=places, ranks=self.ranks)


class Router(nn.Module):
    """The weights of the router."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(config.num_local_experts, dtype=dtype))


class Experts(nn.Module):
    """The weights of all experts of a layer, in the format of the config."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inter = config.hidden_size, config.intermediate_size
        self.format, self.held = config.expert_format, config.held_experts
        for name, rows, columns in (("gate_up_proj", 2 * inter, hidden), ("down_proj", hidden, inter)):
            for tensor in self.format.tensors:
                shape = tensor.shape(config.held_experts, rows, columns)
                kind = dtype if tensor.dtype is None else torch_dtype(tensor.dtype)
                self.register_parameter(
                    name + tensor.suffix, nn.Parameter(torch.empty(shape, dtype=kind), requires_grad=False)
                )
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(config.held_experts, rows, dtype=dtype)))

    def by_argument(self) -> dict[str, torch.Tensor | None]:
        """The weights by the names that ops have for them."""
        return {
            f"{matrix}_{argument}": None if name is None else getattr(self, name)
            for matrix in ("gate_up", "down")
            for argument, name in {**self.format.by_argument(f"{matrix}_proj"), "bias": f"{matrix}_proj_bias"}.items()
        }


class Mlp(nn.Module):
    """The weights of gptoss::experts_sublayer, without its norm."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.router = Router(config, dtype)
        self.experts = Experts(config, dtype)
        self.ranks, self.by_expert = config.ranks, config.by_expert
        self.experts_of_a_rank = share_of_first(config.num_local_experts, config)
        self.choices, self.alpha, self.limit = config.num_experts_per_tok, config.swiglu_alpha, config.swiglu_limit

    def forward(
        self,
        x: torch.Tensor,
        norm: RMSNorm,
        positions: torch.Tensor,
        places: torch.Tensor | None,
        adapters: LayerAdapters | None,
    ) -> torch.Tensor:
        """x [T, H] float32, positions [T]; places: where ranks share the model, model/places.py."""
        if adapters is not None:
            return x + self._of_adapted_experts(x, norm, positions, adapters)
        if self.by_expert and places is not None:
            found = self._of_own_experts(x, norm, positions, places[WHICH])
            return torch.ops.gptoss.sum_ranks(x=found, residual=x, places=places, ranks=self.ranks, box=Box.EXPERTS)
        return torch.ops.gptoss.experts_sublayer(
            x=x,
            norm_weight=norm.weight,
            router_weight=self.router.weight,
            router_bias=self.router.bias,
            **self.experts.by_argument(),
            positions=positions,
            choices=self.choices,
            alpha=self.alpha,
            limit=self.limit,
            eps=norm.eps,
            places=places,
            ranks=self.ranks,
        )

    def _of_adapted_experts(
        self, x: torch.Tensor, norm: RMSNorm, positions: torch.Tensor, adapters: LayerAdapters
    ) -> torch.Tensor:
        """What the experts add to x, with adapters."""
        normed = rms_norm(x, norm.weight, norm.eps)
        weights, indices = route(normed, self.router.weight, self.router.bias, self.choices)
        return torch.ops.gptoss.adapted_experts(
            x=normed.to(norm.weight.dtype),
            routing_weights=weights,
            expert_indices=torch.where((positions >= 0)[:, None], indices, -1),
            **self.experts.by_argument(),
            alpha=self.alpha,
            limit=self.limit,
            **adapters.of_experts(),
        )

    def _of_own_experts(
        self, x: torch.Tensor, norm: RMSNorm, positions: torch.Tensor, rank: torch.Tensor
    ) -> torch.Tensor:
        """What the experts of this rank, a number [], add to x. The choices of other ranks' experts add nothing."""
        normed = rms_norm(x, norm.weight, norm.eps)
        weights, indices = route(normed, self.router.weight, self.router.bias, self.choices)
        own = indices - rank * self.experts_of_a_rank
        there = (own >= 0) & (own < self.experts.held) & (positions >= 0)[:, None]
        return torch.ops.gptoss.experts(
            x=normed.to(norm.weight.dtype),
            routing_weights=weights,
            expert_indices=torch.where(there, own, -1),
            **self.experts.by_argument(),
            alpha=self.alpha,
            limit=self.limit,
        )


class Layer(nn.Module):
    """A decoder layer: attention, then experts."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = Attention(config, layer, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = Mlp(config, dtype)

    def forward(
        self,
        x: torch.Tensor,
        rope: Rope,
        slots: torch.Tensor,
        positions: torch.Tensor,
        pages: Pages,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        places: torch.Tensor | None,
        adapters: LayerAdapters | None,
    ) -> torch.Tensor:
        x = self.self_attn(x, self.input_layernorm, rope, slots, positions, pages, k_cache, v_cache, places, adapters)
        return self.mlp(x, self.post_attention_layernorm, positions.flatten(), places, adapters)


class Backbone(nn.Module):
    """Everything from the embedding to the final norm. Checkpoints call it `model`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.rotary_emb = RotaryEmbedding(config)
        self.layers = nn.ModuleList(Layer(config, i, dtype) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)


class GptOss(nn.Module):
    """The decoder. `backbone` makes hidden states, `unembed` makes logits from some of them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.ranks, self.tokens_of_a_rank = config.ranks, share_of_first(config.vocab_size, config)
        self.model = Backbone(config, dtype)
        self.places: nn.Parameter | None = None
        if config.ranks > 1:
            self.places = nn.Parameter(torch.empty(FIRST_MEMORY + config.ranks, dtype=torch.int64), requires_grad=False)
        self.lm_head = nn.Linear(config.hidden_size, config.unembedded_tokens, bias=False, dtype=dtype)

    def backbone(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        pages: Pages,
        caches: Caches,
        adapters: Adapters | None = None,
    ) -> torch.Tensor:
        """tokens and positions [N, L] int64 (position -1: padding), slots [N] int64, the pages of all slots, one (k, v)
        cache for each layer, and what an artifact with adapter slots takes of adapters.

        Returns the residual stream after the last layer, [N L, H] float32, before the final norm.
        """
        x = self.model.embed_tokens(tokens.flatten()).float()
        rope = self.model.rotary_emb(positions.flatten())
        of_tokens = None if adapters is None else adapters[ADAPTER_TABLE][slots].repeat_interleave(positions.size(1))
        for index, (layer, (k_cache, v_cache)) in enumerate(zip(self.model.layers, caches, strict=True)):
            adapted = None if adapters is None or of_tokens is None else LayerAdapters(adapters, index, of_tokens)
            x = layer(x, rope, slots, positions, pages, k_cache, v_cache, self.places, adapted)
        return x

    def unembed(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Residual stream [R, H] float32 to the results of gptoss::unembed. Where ranks share the model, the logits are
        those of the rank's tokens, and the other results those of all tokens."""
        logits, top, top_logprob, log_total = torch.ops.gptoss.unembed(
            x=hidden, norm_weight=self.model.norm.weight, weight=self.lm_head.weight, eps=self.model.norm.eps
        )
        if self.places is not None:
            top, top_logprob, log_total = best_of_ranks(
                logits, top, log_total, self.places, self.ranks, self.tokens_of_a_rank
            )
        return logits, top, top_logprob, log_total

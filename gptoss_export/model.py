"""The gpt-oss decoder in plain PyTorch over the ops of `gptoss_export.ops`.

It is built on the meta device and never holds weights: `export` traces it with weights, caches and tokens
as inputs. Parameter names are Hugging Face's, except that q, k and v are one matrix (`qkv_proj`) and the
RoPE frequencies are a parameter, because a program's constants have to come from somewhere.

Numerics: matrix products in the dtype of the weights; the residual stream, RMSNorm, RoPE, the router and
all softmaxes in float32. The router decides in float32, and of equal logits the lower expert index wins.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import kv_cache, ops  # noqa: F401  (ops registers torch.ops.gptoss)
from .config import MXFP4_GROUP, ModelConfig, Yarn

Caches = list[tuple[torch.Tensor, torch.Tensor]]


def yarn_inv_freq(yarn: Yarn, head_dim: int) -> torch.Tensor:
    """RoPE frequencies [head_dim / 2], float32, in radians a position (arXiv:2309.00071, section 3.2).

    Dimensions that turn more than beta_fast times within the original context keep their frequency,
    those that turn less than beta_slow times are slowed by `factor`, a linear ramp joins the two.
    """
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
    """float32 [T, H] to float32 [T, H]; the caller rounds."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight.float()


class RotaryEmbedding(nn.Module):
    """positions [T] to cos and sin [T, 1, head_dim / 2], float32, multiplied by YaRN's concentration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inv_freq = nn.Parameter(torch.empty(config.head_dim // 2, dtype=torch.float32))
        self.concentration = config.rope.concentration

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = positions.float()[:, None, None] * self.inv_freq
        return angle.cos() * self.concentration, angle.sin() * self.concentration


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the two halves of [T, heads, head_dim] against each other, in float32; dtype of x."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.window = config.head_dim, config.window(layer)
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, width, dtype=dtype)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, dtype=dtype)
        self.sinks = nn.Parameter(torch.empty(self.heads, dtype=dtype))

    def forward(self, x, rope, slots, positions, k_cache, v_cache) -> torch.Tensor:
        """x [T, H]; positions [N, L] with N L = T; caches are written in place."""
        qkv = self.qkv_proj(x).view(-1, self.heads + 2 * self.kv_heads, self.head_dim)
        query, key, value = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        cos, sin = rope
        slot_of, position_of = slots[:, None].expand_as(positions).flatten(), positions.flatten()
        kv_cache.write(k_cache, slot_of, position_of, rotate(key, cos, sin))
        kv_cache.write(v_cache, slot_of, position_of, value)
        out = torch.ops.gptoss.sink_attention(
            rotate(query, cos, sin).view(*positions.shape, self.heads, self.head_dim),
            k_cache, v_cache, self.sinks, slots, positions, self.window, self.head_dim**-0.5,
        )  # fmt: skip
        return self.o_proj(out.view(x.size(0), -1))


class Router(nn.Module):
    """Top-k experts of each token, softmax over the chosen logits only."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(config.num_local_experts, dtype=dtype))
        self.choices = config.num_experts_per_tok

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, H] float32 to weights [T, K] float32 and expert indices [T, K] int64."""
        logits = F.linear(x, self.weight.float(), self.bias.float())
        # A stable sort settles ties the same way on every device; topk leaves them open.
        values, indices = torch.sort(logits, dim=-1, descending=True, stable=True)
        return values[:, : self.choices].softmax(dim=-1), indices[:, : self.choices]


class Experts(nn.Module):
    """The MXFP4 weights of all experts of a layer, as the checkpoint packs them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        experts, hidden, inter = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj_blocks, self.gate_up_proj_scales = _packed(experts, 2 * inter, hidden)
        self.gate_up_proj_bias = nn.Parameter(torch.empty(experts, 2 * inter, dtype=dtype))
        self.down_proj_blocks, self.down_proj_scales = _packed(experts, hidden, inter)
        self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden, dtype=dtype))
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def forward(self, x, routing_weights, expert_indices) -> torch.Tensor:
        return torch.ops.gptoss.mxfp4_experts(
            x, routing_weights, expert_indices,
            self.gate_up_proj_blocks, self.gate_up_proj_scales, self.gate_up_proj_bias,
            self.down_proj_blocks, self.down_proj_scales, self.down_proj_bias,
            self.alpha, self.limit,
        )  # fmt: skip


def _packed(experts: int, rows: int, columns: int) -> tuple[nn.Parameter, nn.Parameter]:
    groups = columns // MXFP4_GROUP
    return tuple(
        nn.Parameter(torch.empty(shape, dtype=torch.uint8), requires_grad=False)
        for shape in ((experts, rows, groups, MXFP4_GROUP // 2), (experts, rows, groups))
    )


class Mlp(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.router = Router(config, dtype)
        self.experts = Experts(config, dtype)
        self.dtype = dtype

    def forward(self, x: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """x [T, H] float32, active [T] bool: padding and idle rows are routed to no expert."""
        weights, indices = self.router(x)
        return self.experts(x.to(self.dtype), weights, torch.where(active[:, None], indices, -1))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = Attention(config, layer, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = Mlp(config, dtype)
        self.dtype = dtype

    def forward(self, x, rope, slots, positions, k_cache, v_cache) -> torch.Tensor:
        normed = self.input_layernorm(x).to(self.dtype)
        x = x + self.self_attn(normed, rope, slots, positions, k_cache, v_cache)
        return x + self.mlp(self.post_attention_layernorm(x), positions.flatten() >= 0)


class Backbone(nn.Module):
    """Everything between token ids and the final norm; named `model` in a checkpoint."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.rotary_emb = RotaryEmbedding(config)
        self.layers = nn.ModuleList(Layer(config, i, dtype) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)


class GptOss(nn.Module):
    """The decoder: `backbone` makes hidden states, `unembed` makes logits of some of them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = Backbone(config, dtype)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        self.dtype = dtype

    def backbone(
        self, tokens: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, caches: Caches
    ) -> torch.Tensor:
        """tokens and positions [N, L] int64 (-1: padding), slots [N] int64, one (k, v) cache a layer.

        Returns the residual stream after the last layer, [N L, H] float32, before the final norm.
        """
        x = self.model.embed_tokens(tokens.flatten()).float()
        rope = self.model.rotary_emb(positions.flatten())
        for layer, (k_cache, v_cache) in zip(self.model.layers, caches, strict=True):
            x = layer(x, rope, slots, positions, k_cache, v_cache)
        return x

    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Residual stream [R, H] float32 to logits [R, V] float32."""
        return self.lm_head(self.model.norm(hidden).to(self.dtype)).float()

"""Random checkpoints of true shape, for tests, benchmarks and trying things out without the real weights.

Values keep activations in a sane range: matrices have a standard deviation of 1 / sqrt(columns), and those
that write to the residual stream (o_proj, down_proj) are divided by sqrt(2 layers) besides, so that all
layers together add to it about what the embedding put there. Without that a deep random model is chaotic:
one rounding changes an expert, and with it every logit, which makes it useless to compare implementations.
MXFP4 scales put the experts' weights there too. The same seed gives the same model in every layout: plain
experts are the unpacked MXFP4 ones. Written a layer at a time, so memory stays flat, and into a temporary
sibling that is renamed when whole.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..model import mxfp4
from ..model.config import FULL, SLIDING, ModelConfig, Yarn, alternating
from ..errors import UsageError
from ..artifact.atomic_folder import replace_folder
from .layouts import LAYOUTS, PACKED, Layout, Recipe
from .reader import INDEX

_ROPE = Yarn(theta=150000.0, factor=32.0, original_max_position_embeddings=4096)
_20B = ModelConfig(
    hidden_size=2880, intermediate_size=2880, num_hidden_layers=24, num_attention_heads=64,
    num_key_value_heads=8, head_dim=64, vocab_size=201088, num_local_experts=32, num_experts_per_tok=4,
    sliding_window=128, layer_types=(SLIDING, FULL) * 12, max_position_embeddings=131072,
    rms_norm_eps=1e-5, swiglu_alpha=1.702, swiglu_limit=7.0, rope=_ROPE, eos_token_ids=(200002,),
)  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    "tiny": dataclasses.replace(
        _20B, hidden_size=96, intermediate_size=64, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=32, vocab_size=512, num_local_experts=8, sliding_window=32,
        layer_types=(SLIDING, FULL) * 2, eos_token_ids=(511,),
    ),
    "20b": _20B,
    "120b": dataclasses.replace(
        _20B, num_hidden_layers=36, num_local_experts=128, layer_types=(SLIDING, FULL) * 18
    ),
}  # fmt: skip


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The same shape with another number of layers, alternating as gpt-oss does."""
    return dataclasses.replace(config, num_hidden_layers=layers, layer_types=tuple(alternating(layers)))


def layout_for(layout: str, experts: str) -> Layout:
    """The layout that --layout and --experts name together. Raises UsageError where there is none."""
    if layout == "original" and experts != "mxfp4":
        raise UsageError("--experts bf16: the original layout is MXFP4 only; use --layout hf or --experts mxfp4")
    return LAYOUTS[layout if experts == "mxfp4" else f"{layout}-bf16"]


def write_random(
    folder: Path,
    config: ModelConfig,
    layout: Layout,
    seed: int,
    device: torch.device,
    tokenizer: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a checkpoint to `folder`, which must not exist. `progress` gets shards done and in all."""
    groups = list(_shard_groups(layout.recipes(config)))
    draw = _Draw(seed, device, depth=2 * config.num_hidden_layers)
    with replace_folder(folder, UsageError) as partial:
        weight_map: dict[str, str] = {}
        total = 0
        for number, group in enumerate(groups, start=1):
            name = f"model-{number:05}-of-{len(groups):05}.safetensors"
            tensors: dict[str, torch.Tensor] = {}
            for parameter, recipe in group.items():
                tensors |= draw.tensors(parameter, recipe)
            save_file(tensors, partial / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
            progress(number, len(groups))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (partial / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        (partial / "config.json").write_text(json.dumps(_CONFIGS[layout.name](config), indent=1) + "\n")
        if tokenizer:
            _write_tokenizer(partial, config)


def _shard_groups(recipes: dict[str, Recipe]) -> Iterator[dict[str, Recipe]]:
    """A shard for each layer, and one for each matrix outside of the layers."""
    shards: dict[str, dict[str, Recipe]] = {}
    for name, recipe in recipes.items():
        key = ".".join(name.split(".")[:3]) if name.startswith("model.layers.") else name
        shards.setdefault(key, {})[name] = recipe
    yield from shards.values()


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Random values for parameters. Each has its own stream, named by seed, parameter and kind of device."""

    seed: int
    device: torch.device
    depth: int  # matrices that write to the residual stream

    def tensors(self, parameter: str, recipe: Recipe) -> dict[str, torch.Tensor]:
        """The stored tensors of one parameter, on the CPU."""
        if recipe.quantize:
            (matrix,) = recipe.parts
            experts, columns, rows = matrix.shape
            blocks = self.codes(f"{parameter}_blocks", (experts, rows, columns // 32, 16))
            scales = self.scales(f"{parameter}_scales", (experts, rows, columns // 32))
            weights = mxfp4.dequantize(blocks, scales).to(torch.bfloat16)
            return {matrix.name: weights.mT.contiguous().cpu()}
        sizes = [part.shape[0] for part in recipe.parts]
        shape = (sum(sizes), *recipe.parts[0].shape[1:])
        if recipe.parts[0].dtypes != PACKED:
            whole = self.floats(parameter, shape)
        else:
            whole = self.codes(parameter, shape) if parameter.endswith("_blocks") else self.scales(parameter, shape)
        return {
            part.name: piece.contiguous().cpu()
            for part, piece in zip(recipe.parts, whole.split(sizes), strict=True)
        }

    def codes(self, parameter: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(
            0, 256, shape, generator=self._stream(parameter), device=self.device, dtype=torch.uint8
        )

    def scales(self, parameter: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Uniform E2M1 codes have a standard deviation of 2.93; three neighbouring powers of two."""
        exponent = round(math.log2(self._gain(parameter) / (2.93 * math.sqrt(32 * shape[-1]))))
        return torch.randint(
            126 + exponent, 129 + exponent, shape,
            generator=self._stream(parameter), device=self.device, dtype=torch.uint8,
        )  # fmt: skip

    def floats(self, parameter: str, shape: tuple[int, ...]) -> torch.Tensor:
        normal = torch.randn(shape, generator=self._stream(parameter), device=self.device)
        if parameter.endswith("norm.weight"):
            normal = 1 + 0.1 * normal
        elif parameter.endswith("sinks"):
            normal = 1 + normal
        elif parameter.endswith("bias"):
            normal = 0.1 * self._gain(parameter) * normal
        elif not parameter.endswith("embed_tokens.weight"):
            normal = self._gain(parameter) * normal / math.sqrt(shape[-1])
        return normal.to(torch.bfloat16)

    def _gain(self, parameter: str) -> float:
        if "o_proj" in parameter or "down_proj" in parameter:
            return 1 / math.sqrt(self.depth)
        # Router logits with a wide spread: few tokens have two experts within a rounding of each other.
        return 3.0 if "router" in parameter else 1.0

    def _stream(self, parameter: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed((self.seed * 1_000_003 + _stable_hash(parameter)) % 2**63)


def _stable_hash(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value * 131 + byte) % (2**31 - 1)
    return value


def hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    kept = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "num_local_experts", "num_experts_per_tok", "sliding_window",
        "max_position_embeddings", "rms_norm_eps", "swiglu_alpha", "swiglu_limit",
    )  # fmt: skip
    return {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": True,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "eos_token_id": config.eos_token_ids[0] if config.eos_token_ids else None,
        "pad_token_id": config.eos_token_ids[0] if config.eos_token_ids else None,
        **{key: getattr(config, key) for key in kept},
        "layer_types": list(config.layer_types), "rope_theta": rope.theta,
        "rope_scaling": {
            "rope_type": "yarn", "factor": rope.factor, "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow, "truncate": rope.truncate,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
            **({} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}),
        },
    }  # fmt: skip


def _packed_config(config: ModelConfig) -> dict[str, Any]:
    kept_whole = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return hugging_face_config(config) | {
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": kept_whole}
    }


def _original_config(config: ModelConfig) -> dict[str, Any]:
    kept = ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "swiglu_limit", "head_dim",
            "num_attention_heads", "num_key_value_heads", "sliding_window")  # fmt: skip
    return {key: getattr(config, key) for key in kept} | {
        "num_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "initial_context_length": config.rope.original_max_position_embeddings,
        "rope_theta": config.rope.theta,
        "rope_scaling_factor": config.rope.factor,
        "rope_ntk_alpha": config.rope.beta_slow,
        "rope_ntk_beta": config.rope.beta_fast,
    }


_CONFIGS: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "hf": _packed_config,
    "hf-bf16": hugging_face_config,
    "original": _original_config,
}


def _write_tokenizer(folder: Path, config: ModelConfig) -> None:
    """A byte-level tokenizer without merges: the 256 bytes, then unused names up to the vocabulary's end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    vocabulary |= {f"<|{index}|>": index for index in range(len(alphabet), config.vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))

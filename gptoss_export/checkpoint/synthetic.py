"""Writes checkpoints with random weights, for tests, benchmarks and trials without the real weights.

Matrices have a standard deviation of 1 / sqrt(columns). Those that write to the residual stream (o_proj, down_proj)
are also divided by sqrt(2 layers). All layers together then add about as much to the residual stream as the embedding
put there. Without this, a deep random model is chaotic: one rounding changes the choice of an expert and with it every
logit, and two implementations cannot be compared. The MXFP4 scales are drawn so that the experts' weights follow the
same rule.

One seed gives one model: every layout stores the same parameters, in its own way. A checkpoint is written one layer at
a time, so that memory stays flat. It is written into a temporary sibling folder that is renamed at the end.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..artifact.atomic_folder import replace_folder
from ..errors import UsageError
from ..machine_limits import check_threads, reports_limits, writes
from ..model.config import FULL, SLIDING, ModelConfig, Yarn, alternating
from ..model.expert_formats import MXFP4_GROUP
from ..model.parameters import EMBEDDING, layer_of, parameters
from .layouts import LAYOUTS, Layout
from .layouts.layout import Recipe
from .shards import INDEX

_20B = ModelConfig(
    hidden_size=2880,
    intermediate_size=2880,
    num_hidden_layers=24,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=201088,
    num_local_experts=32,
    num_experts_per_tok=4,
    sliding_window=128,
    layer_types=(SLIDING, FULL) * 12,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    swiglu_alpha=1.702,
    swiglu_limit=7.0,
    rope=Yarn(theta=150000.0, factor=32.0, original_max_position_embeddings=4096),
    eos_token_ids=(200002,),
)

PRESETS: dict[str, ModelConfig] = {
    "tiny": dataclasses.replace(
        _20B,
        hidden_size=96,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        num_local_experts=8,
        sliding_window=32,
        layer_types=(SLIDING, FULL) * 2,
        eos_token_ids=(511,),
    ),
    "20b": _20B,
    "120b": dataclasses.replace(_20B, num_hidden_layers=36, num_local_experts=128, layer_types=(SLIDING, FULL) * 18),
}

# The special tokens of gpt-oss's chat format, and their ids in its vocabulary.
_SPECIAL_TOKENS = {
    "<|startoftext|>": 199998,
    "<|endoftext|>": 199999,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
    "<|return|>": 200002,
}

_E2M1_DEVIATION = 2.93  # standard deviation of an MXFP4 element whose 16 codes are equally likely


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The same shape with another number of layers, sliding and full in turn."""
    return dataclasses.replace(config, num_hidden_layers=layers, layer_types=tuple(alternating(layers)))


def layout_for(names: str, experts: str) -> Layout:
    """The layout that --layout and --experts mean together. Raises UsageError if no layout does."""
    found = {layout.experts: layout for layout in LAYOUTS.values() if layout.names == names}
    if not found:
        known = dict.fromkeys(layout.names for layout in LAYOUTS.values())
        raise UsageError(f"--layout {names}: expected {' or '.join(known)}")
    if experts not in found:
        kinds = " and ".join(kind.upper() for kind in found)
        others = dict.fromkeys(layout.names for layout in LAYOUTS.values() if layout.experts == experts)
        instead = [f"--experts {kind}" for kind in found] + [f"--layout {other}" for other in others]
        raise UsageError(f"--experts {experts}: the {names} layout is {kinds} only; use {' or '.join(instead)}")
    return found[experts]


@reports_limits()
def write_synthetic(
    folder: Path,
    config: ModelConfig,
    layout: Layout,
    seed: int,
    device: torch.device,
    tokenizer: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a checkpoint with random weights to `folder`.

    Raises UsageError if `folder` exists, OSError where it cannot be written, and MachineError.

    The values depend on the seed and on the type of `device`, which draws them. With `tokenizer`, a tokenizer of
    single bytes is written too. `progress` is called after each shard with the number of shards written and of all.
    """
    check_threads(torch.get_num_threads())
    shards = _shards(layout.recipes(config, {}))
    shapes = {parameter.name: parameter.shape for parameter in parameters(config, "bfloat16")}
    random = _RandomParameters(seed, device, residual_writes=2 * config.num_hidden_layers)
    with replace_folder(folder, UsageError) as partial:
        weight_map: dict[str, str] = {}
        total = 0
        for number, recipes in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors: dict[str, torch.Tensor] = {}
            for stem, recipe in recipes.items():
                drawn = [random.draw(name, shapes[name]) for name in recipe.parameters(stem)]
                tensors |= {name: value.contiguous().cpu() for name, value in recipe.invert(drawn).items()}
            with writes(partial / file):
                save_file(tensors, partial / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
            total += sum(tensor.nbytes for tensor in tensors.values())
            progress(number, len(shards))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        for name, value in ((INDEX, index), ("config.json", layout.config_json(config))):
            with writes(partial / name):
                (partial / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        if tokenizer:
            _write_tokenizer(partial, config)


def _shards(recipes: dict[str, Recipe]) -> list[dict[str, Recipe]]:
    """One shard for each layer, and one for each parameter outside of the layers."""
    shards: dict[int | str, dict[str, Recipe]] = {}
    for name, recipe in recipes.items():
        layer = layer_of(name)
        shards.setdefault(name if layer is None else layer, {})[name] = recipe
    return list(shards.values())


@dataclasses.dataclass(frozen=True)
class _RandomParameters:
    """Draws random parameters of the model.

    Each parameter has a generator of its own, which depends on the seed and the parameter's name. So the order in
    which they are drawn does not matter. `residual_writes` is the number of matrices that write to the residual stream.
    """

    seed: int
    device: torch.device
    residual_writes: int

    def draw(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The parameter `name`: uint8 for MXFP4 blocks and scales, else bfloat16."""
        if name.endswith("_blocks"):
            return self._bytes(name, shape, 0, 256)
        if name.endswith("_scales"):
            return self._scales(name, shape)
        normal = torch.randn(shape, generator=self._generator(name), device=self.device)
        if name.endswith("norm.weight"):
            normal = 1 + 0.1 * normal
        elif name.endswith("sinks"):
            normal = 1 + normal
        elif name.endswith("bias"):
            normal = 0.1 * self._gain(name) * normal
        elif name != EMBEDDING:
            normal = self._gain(name) * normal / math.sqrt(shape[-1])
        return normal.to(torch.bfloat16)

    def _scales(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Three neighbouring powers of two. The middle one gives the matrix about the deviation that it should have."""
        wanted = self._gain(name) / math.sqrt(MXFP4_GROUP * shape[-1])
        exponent = round(math.log2(wanted / _E2M1_DEVIATION))
        return self._bytes(name, shape, 126 + exponent, 129 + exponent)

    def _bytes(self, name: str, shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
        generator = self._generator(name)
        return torch.randint(low, high, shape, generator=generator, device=self.device, dtype=torch.uint8)

    def _gain(self, name: str) -> float:
        """The standard deviation of a matrix, times sqrt(columns)."""
        if "o_proj" in name or "down_proj" in name:
            return 1 / math.sqrt(self.residual_writes)
        # The router's logits are spread widely, so that few tokens have two experts within a rounding of each other.
        return 3.0 if "router" in name else 1.0

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed((self.seed * 1_000_003 + _stable_hash(name)) % 2**63)


def _stable_hash(name: str) -> int:
    """A hash that is the same in every process, unlike Python's own."""
    value = 0
    for byte in name.encode():
        value = (value * 131 + byte) % (2**31 - 1)
    return value


def _write_tokenizer(folder: Path, config: ModelConfig) -> None:
    """A byte-level tokenizer without merges. Its tokens are the 256 bytes, names that no text contains, and the special
    tokens of gpt-oss's chat format: with their ids of gpt-oss's vocabulary where there are as many, otherwise last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = (
        _SPECIAL_TOKENS.values()
        if config.vocab_size > max(_SPECIAL_TOKENS.values())
        else range(config.vocab_size - len(_SPECIAL_TOKENS), config.vocab_size)
    )
    special = dict(zip(ids, _SPECIAL_TOKENS, strict=True))
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    vocabulary |= {special.get(index, f"<|{index}|>"): index for index in range(len(alphabet), config.vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special.values()))
    with writes(folder / "tokenizer.json"):
        tokenizer.save(str(folder / "tokenizer.json"))

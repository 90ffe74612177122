"""What an artifact's logits are held against: the same checkpoint, run by something else.

  transformers   Hugging Face's GptOssForCausalLM, eager attention, in float32 or bfloat16
  reference      this project's graph run eagerly over the ops' references in float32; no other software
                 to install, but it shares the graph with what it checks

The build rounds plain experts (layout hf-bf16) to MXFP4. There the oracle's experts are rounded the same
way, so that `verify` shows what compiling changed and not what quantizing did.
"""

from __future__ import annotations

import gc
import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..model import mxfp4
from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import UsageError
from ..compiler.export import build_model
from ..model.kv_cache import CacheShape
from ..model.decoder import GptOss, yarn_inv_freq
from ..model.ops.norm import rms_norm

if TYPE_CHECKING:
    from transformers import GptOssForCausalLM

_ODD = 6364136223846793005  # spreads the digests of layers over 64 bits


@dataclass(frozen=True)
class Routing:
    """How the routers of a pass chose for each token, over all layers.

    margin [n] float32, in logits: by how much the last chosen expert beat the next one, the least of all layers;
    infinite where every expert is chosen. A margin under the rounding of the dtype may fall either way.
    chosen [n] int64: a digest of the experts chosen, equal for tokens whose experts are equal in every layer.
    """

    margin: torch.Tensor
    chosen: torch.Tensor

    @classmethod
    def of_layer(cls, logits: torch.Tensor, chosen: torch.Tensor) -> Routing:
        """Of one layer: router logits [n, E], indices of the chosen experts [n, k]."""
        values = torch.randint(-(2**62), 2**62, (logits.size(-1),), generator=torch.Generator().manual_seed(0))
        return cls(_margin(logits, chosen.size(-1)), values[chosen.cpu()].sum(dim=-1))  # whatever their order

    @classmethod
    def through(cls, layers: list[Routing]) -> Routing:
        """Of all layers, given in order."""
        chosen = torch.zeros_like(layers[0].chosen)
        for layer in layers:
            chosen = chosen * _ODD + layer.chosen  # wraps around
        return cls(torch.stack([layer.margin for layer in layers]).amin(dim=0), chosen)

    @classmethod
    def joined(cls, pieces: list[Routing]) -> Routing:
        """Of consecutive tokens."""
        return cls(torch.cat([piece.margin for piece in pieces]), torch.cat([piece.chosen for piece in pieces]))


class Oracle(ABC):
    """One forward pass over a whole sequence."""

    @abstractmethod
    def logits(self, tokens: list[int], rows: list[int]) -> torch.Tensor:
        """Logits after the tokens at `rows` of a sequence: [rows, V] float32 on the CPU."""

    @abstractmethod
    def routing(self) -> Routing:
        """Of all tokens of the last pass."""


def open_oracle(name: str, folder: Path, dtype: torch.dtype, device: torch.device) -> Oracle:
    """The oracle called `name` for the checkpoint at `folder`."""
    checkpoint = open_checkpoint(folder)
    check_oracle(name)
    if name == "transformers":
        return Transformers(checkpoint, dtype, device)
    return Reference(checkpoint, dtype, device)


def check_oracle(name: str) -> None:
    """Raise UsageError where there is no such oracle, or it is not installed."""
    if name not in ("transformers", "reference"):
        raise UsageError(f"--oracle {name}: expected transformers or reference")
    if name == "transformers" and importlib.util.find_spec("transformers") is None:
        raise UsageError(
            "--oracle transformers: transformers is not installed; "
            "run: pip install 'gptoss-export[verify]', or use --oracle reference"
        )


class Transformers(Oracle):
    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = _from_layout(checkpoint, dtype, device).eval()
        self.device = device
        self._layers: list[Routing] = []
        for layer in self.model.model.layers:
            layer.mlp.router.register_forward_hook(self._record)

    def _record(self, module: torch.nn.Module, inputs: tuple, outputs: tuple) -> None:
        logits, _, chosen = outputs
        self._layers.append(Routing.of_layer(logits, chosen))

    @torch.inference_mode()
    def logits(self, tokens: list[int], rows: list[int]) -> torch.Tensor:
        self._layers.clear()
        ids = torch.tensor([tokens], device=self.device)
        hidden = self.model.model(ids, use_cache=False).last_hidden_state[0]
        return self.model.lm_head(hidden[torch.tensor(rows, device=self.device)]).float().cpu()

    def routing(self) -> Routing:
        return Routing.through(self._layers)


def _from_layout(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    from transformers import GptOssForCausalLM, Mxfp4Config

    common = {"dtype": dtype, "attn_implementation": "eager", "device_map": device}
    if checkpoint.layout.name == "hf":
        packed = Mxfp4Config(dequantize=True)
        return GptOssForCausalLM.from_pretrained(checkpoint.folder, quantization_config=packed, **common)
    if checkpoint.layout.name == "hf-bf16":
        model = GptOssForCausalLM.from_pretrained(checkpoint.folder, **common)
        for layer in model.model.layers:
            for matrix in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                for expert in matrix.data:
                    expert.copy_(mxfp4.dequantize(*mxfp4.quantize(expert.T)).T)
        return model
    return _from_parameters(checkpoint, dtype, device)


def _from_parameters(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    """transformers does not read the original layout: build its model and fill it in."""
    from transformers import GptOssConfig, GptOssForCausalLM

    from ..checkpoint.synthetic import hugging_face_config

    config = GptOssConfig(**hugging_face_config(checkpoint.config))
    config._attn_implementation = "eager"
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = GptOssForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    heads, kv_heads = checkpoint.config.num_attention_heads, checkpoint.config.num_key_value_heads
    sizes = [count * checkpoint.config.head_dim for count in (heads, kv_heads, kv_heads)]
    state: dict[str, torch.Tensor] = {}
    for name in checkpoint.parameters():
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            state[stem] = mxfp4.dequantize(checkpoint.parameter(name), checkpoint.parameter(f"{stem}_scales")).mT
        elif "qkv_proj" in name:
            for letter, piece in zip("qkv", checkpoint.parameter(name).split(sizes), strict=True):
                state[name.replace("qkv", letter)] = piece
        elif not name.endswith("_scales"):
            state[name] = checkpoint.parameter(name)
    model.load_state_dict(state, strict=True)
    return model


class Reference(Oracle):
    """Eager, in chunks, so that the scores of the reference attention stay small."""

    CHUNK = 128

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.device, self.dtype = checkpoint.config, device, dtype
        self.model: GptOss = build_model(self.config, dtype).to_empty(device=device)
        parameters = dict(self.model.named_parameters())
        for name in checkpoint.parameters():
            parameters[name].data.copy_(checkpoint.parameter(name))
        inv_freq = yarn_inv_freq(self.config.rope, self.config.head_dim)
        parameters["model.rotary_emb.inv_freq"].data.copy_(inv_freq)
        self._pieces: list[Routing] = []
        self._layers: list[Routing] = []
        for layer in self.model.model.layers:
            layer.mlp.register_forward_hook(self._record)

    def _record(self, module: torch.nn.Module, inputs: tuple, outputs: torch.Tensor) -> None:
        x, norm = inputs[:2]
        router = module.router
        normed = rms_norm(x, norm.weight, norm.eps)
        logits = torch.nn.functional.linear(normed, router.weight.float(), router.bias.float())
        chosen = logits.sort(dim=-1, descending=True, stable=True).indices[:, : module.choices]
        self._layers.append(Routing.of_layer(logits, chosen))

    @torch.inference_mode()
    def logits(self, tokens: list[int], rows: list[int]) -> torch.Tensor:
        chunk, config = self.CHUNK, self.config
        shape = CacheShape(1, len(tokens), chunk)
        caches = [
            tuple(
                torch.zeros(shape.tensor(config, layer), dtype=self.dtype, device=self.device) for _ in "kv"
            )
            for layer in range(config.num_hidden_layers)
        ]
        slots, wanted, found = torch.zeros(1, dtype=torch.int64, device=self.device), sorted(set(rows)), {}
        self._pieces.clear()
        for start in range(0, len(tokens), chunk):
            piece = torch.tensor([tokens[start : start + chunk]], device=self.device)
            positions = torch.arange(start, start + piece.size(1), device=self.device)[None]
            self._layers.clear()
            hidden = self.model.backbone(piece, positions, slots, caches)
            self._pieces.append(Routing.through(self._layers))
            for row in (row for row in wanted if start <= row < start + piece.size(1)):
                found[row] = self.model.unembed(hidden[row - start][None])[0][0].cpu()
        return torch.stack([found[row] for row in rows])

    def routing(self) -> Routing:
        return Routing.joined(self._pieces)


def _margin(logits: torch.Tensor, choices: int) -> torch.Tensor:
    """By how much the last chosen of [n, E] router logits beats the first one not chosen: [n] on the CPU."""
    if logits.size(-1) == choices:
        return torch.full((logits.size(0),), torch.inf)
    values = logits.float().topk(choices + 1, dim=-1).values
    return (values[:, choices - 1] - values[:, choices]).cpu()


def release() -> None:
    """Give the memory of a dropped model back, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

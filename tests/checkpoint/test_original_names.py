"""The names of the original layout, written out: each tensor is the one that Hugging Face's layout has under its own
name. Writing and reading by one table would not show a wrong name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptoss_export.checkpoint import open_checkpoint

# As the model published with the weights names them, and as transformers does.
MODEL = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
LAYER = {
    "attn.norm.scale": "input_layernorm.weight",
    "attn.sinks": "self_attn.sinks",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.bias": "mlp.router.bias",
    "mlp.mlp1_weight.blocks": "mlp.experts.gate_up_proj_blocks",
    "mlp.mlp1_weight.scales": "mlp.experts.gate_up_proj_scales",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_weight.blocks": "mlp.experts.down_proj_blocks",
    "mlp.mlp2_weight.scales": "mlp.experts.down_proj_scales",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_q_k_and_v_are_one_tensor_in_this_order(checkpoints: dict[str, Path], kind: str) -> None:
    original, hugging_face = open_checkpoint(checkpoints["original"]), open_checkpoint(checkpoints["hf"])
    for layer in range(original.config.num_hidden_layers):
        parts = [hugging_face.stored(f"model.layers.{layer}.self_attn.{name}_proj.{kind}") for name in "qkv"]
        assert torch.equal(original.stored(f"block.{layer}.attn.qkv.{kind}"), torch.cat(parts))


def test_every_other_tensor(checkpoints: dict[str, Path]) -> None:
    original, hugging_face = open_checkpoint(checkpoints["original"]), open_checkpoint(checkpoints["hf"])
    layers = range(original.config.num_hidden_layers)
    names = MODEL | {
        f"block.{layer}.{name}": f"model.layers.{layer}.{other}" for layer in layers for name, other in LAYER.items()
    }
    assert {name for name in original.files if ".qkv." not in name} == names.keys()
    for name, other in names.items():
        assert torch.equal(original.stored(name), hugging_face.stored(other)), name

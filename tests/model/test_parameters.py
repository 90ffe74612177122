"""The parameters that follow from a config are those of the decoder, which is made of modules."""

from __future__ import annotations

import pytest
import torch

from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compiler.export import build_model
from gptoss_export.model.dtypes import dtype_name
from gptoss_export.model.parameters import (
    EMBEDDING,
    INV_FREQ,
    UNEMBEDDING,
    Parameter,
    is_expert_weight,
    layer_of,
    parameters,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_the_decoders(preset: str, dtype: torch.dtype) -> None:
    model = build_model(PRESETS[preset], dtype)
    expected = [
        Parameter(name, tuple(value.shape), dtype_name(value.dtype)) for name, value in model.named_parameters()
    ]
    assert list(parameters(PRESETS[preset], dtype_name(dtype))) == expected


def test_layer_of() -> None:
    assert layer_of("model.layers.0.input_layernorm.weight") == 0
    assert layer_of("model.layers.23.mlp.experts.down_proj_blocks") == 23
    assert [layer_of(name) for name in (EMBEDDING, INV_FREQ, *UNEMBEDDING)] == [None] * 4
    config = PRESETS["tiny"]
    found = {layer_of(item.name) for item in parameters(config, "float32")}
    assert found == {None, *range(config.num_hidden_layers)}


def test_expert_weights() -> None:
    """Six of each layer: blocks, scales and bias of two matrices."""
    names = [item.name for item in parameters(PRESETS["tiny"], "float32") if is_expert_weight(item.name)]
    assert len(names) == 6 * PRESETS["tiny"].num_hidden_layers
    assert all("_proj_" in name for name in names)

"""RoPE and the router against transformers, ties included."""

import dataclasses

import pytest
import torch

from gptoss_export.checkpoint.synthetic import PRESETS, hugging_face_config
from gptoss_export.model.decoder import RotaryEmbedding, yarn_inv_freq
from gptoss_export.model.ops.experts_sublayer import route


@pytest.mark.parametrize("change", [{}, {"truncate": True}, {"factor": 4.0}, {"beta_fast": 8.0, "beta_slow": 2.0}])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_yarn_is_transformers(change, head_dim):
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    rope = dataclasses.replace(PRESETS["20b"].rope, **change)
    config = dataclasses.replace(PRESETS["20b"], head_dim=head_dim, rope=rope)
    theirs = GptOssRotaryEmbedding(GptOssConfig(**hugging_face_config(config)))
    ours = RotaryEmbedding(config)
    ours.inv_freq.data.copy_(yarn_inv_freq(rope, head_dim))
    torch.testing.assert_close(ours.inv_freq.data, theirs.inv_freq, rtol=1e-6, atol=0)
    positions = torch.tensor([0, 1, 4095, 4096, 131071])
    for mine, other in zip(ours(positions), theirs(torch.zeros(1), positions[None]), strict=True):
        torch.testing.assert_close(mine, other[0])


def test_router_is_transformers():
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

    rows, x = torch.randn(16, 64), torch.randn(50, 64)
    theirs = GptOssTopKRouter(GptOssConfig(hidden_size=64, num_local_experts=16, num_experts_per_tok=4))
    theirs.load_state_dict({"weight": rows, "bias": torch.zeros(16)})
    _, scores, indices = theirs(x)
    ours_scores, ours_indices = route(x, rows, torch.zeros(16), 4)
    assert torch.equal(ours_indices, indices)
    torch.testing.assert_close(ours_scores, scores)


def test_router_ties_go_to_the_lower_index():
    rows = torch.zeros(6, 32)
    rows[[1, 3, 4], 0] = 1.0  # three equal winners for two places
    weights, indices = route(torch.ones(3, 32), rows, torch.zeros(6), 2)
    assert indices.tolist() == [[1, 3]] * 3
    assert torch.equal(weights, torch.full((3, 2), 0.5))

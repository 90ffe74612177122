"""The ops' contracts, and their references against Hugging Face's modules."""

import pytest
import torch

from gptoss_export import mxfp4
from gptoss_export.verify.metric import TOLERANCES, error
from gptoss_export.model.ops import OPS

CASES = [
    (name, label, arguments)
    for name, op in OPS.items()
    for label, arguments in op.cases(torch.device("cpu"), torch.float32)
]


@pytest.mark.parametrize(("name", "label", "arguments"), CASES, ids=[f"{name}: {label}" for name, label, _ in CASES])
def test_opcheck(name, label, arguments):
    torch.library.opcheck(OPS[name].overload, arguments)


EXPERTS = [(label, arguments) for name, label, arguments in CASES if name == "mxfp4_experts"]


@pytest.mark.parametrize(("label", "arguments"), EXPERTS, ids=[label for label, _ in EXPERTS])
def test_experts_reference_is_transformers(label, arguments):
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    x, weights, indices, blocks1, scales1, bias1, blocks2, scales2, bias2, alpha, limit = arguments
    config = GptOssConfig(hidden_size=x.size(1), intermediate_size=blocks2.size(2) * 32,
                          num_local_experts=blocks1.size(0))  # fmt: skip
    module = GptOssExperts(config)
    assert (module.alpha, module.limit) == (alpha, limit)
    module.load_state_dict({
        "gate_up_proj": mxfp4.dequantize(blocks1, scales1).mT, "gate_up_proj_bias": bias1,
        "down_proj": mxfp4.dequantize(blocks2, scales2).mT, "down_proj_bias": bias2,
    })  # fmt: skip
    # Theirs has no -1: give those choices to an expert with weight zero.
    chosen = indices >= 0
    with torch.no_grad():
        expected = module(x, indices.clamp(min=0), torch.where(chosen, weights, 0.0))
    assert error(OPS["mxfp4_experts"].reference(*arguments), expected).within(TOLERANCES[torch.float32])


ATTENTION = [(label, arguments) for name, label, arguments in CASES if name == "sink_attention"]


@pytest.mark.parametrize(("label", "arguments"), ATTENTION, ids=[label for label, _ in ATTENTION])
def test_attention_reference_is_transformers(label, arguments):
    """Lay the keys that each sequence may see out in order, and give them to eager_attention_forward."""
    from types import SimpleNamespace

    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    query, k_cache, v_cache, sinks, slots, positions, window, scale = arguments
    rows = k_cache.size(2) - 1
    got = OPS["sink_attention"].reference(*arguments)
    module = SimpleNamespace(num_key_value_groups=query.size(2) // k_cache.size(1), sinks=sinks, training=False)
    for sequence, slot in enumerate(slots.tolist()):
        at = positions[sequence]
        valid = at >= 0
        assert torch.equal(got[sequence][~valid], torch.zeros_like(got[sequence][~valid]))
        if not valid.any():
            continue
        first = max(0, int(at[valid].min()) - window + 1) if window else 0
        keys_at = torch.arange(first, int(at.max()) + 1)
        keys, values = (cache[slot][:, keys_at % rows][None] for cache in (k_cache, v_cache))
        seen = keys_at[None] <= at[valid][:, None]
        if window:
            seen &= keys_at[None] > at[valid][:, None] - window
        mask = torch.where(seen, 0.0, float("-inf"))[None, None]
        q = query[sequence][valid].transpose(0, 1)[None]
        expected, _ = eager_attention_forward(module, q, keys, values, mask, scaling=scale, dropout=0.0)
        assert error(got[sequence][valid], expected[0]).within(TOLERANCES[torch.float32])


def test_error_metric():
    want = torch.tensor([1.0, -1.0, 0.0, 1.0])
    close = error(want + torch.tensor([0.0, 0.0, 0.03, 0.0]), want)
    assert close.max == pytest.approx(0.03 / 0.75**0.5) and close.rms == pytest.approx(close.max / 2)
    assert not error(torch.tensor([float("nan")] * 4), want).within(close.times(1e9))
    with pytest.raises(ValueError, match="shapes differ"):
        error(want, want[:2])

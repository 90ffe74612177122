"""The ops' contracts, and their references against Hugging Face's modules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from unseen import FILLS, TOKEN_INPUTS, Unseen, marks_keys

from gptoss_export.model import mxfp4
from gptoss_export.model.ops import OPS
from gptoss_export.verification.metric import TOLERANCES, deviation

CASES = {
    f"{name}: {case.label}": (name, case.arguments)
    for name, op in OPS.items()
    for case in op.cases(torch.device("cpu"), torch.float32)
}


def labels(op: str) -> list[str]:
    return [label for label, (name, _) in CASES.items() if name == op]


@pytest.mark.parametrize("label", CASES)
def test_opcheck(label: str) -> None:
    name, arguments = CASES[label]
    torch.library.opcheck(OPS[name].overload, tuple(OPS[name].arguments((), arguments).values()))


@pytest.mark.parametrize("label", CASES)
def test_cases_give_all_arguments_in_order(label: str) -> None:
    name, arguments = CASES[label]
    assert tuple(arguments) == OPS[name].argument_names


def plain(arguments: dict[str, Any], matrix: str) -> torch.Tensor:
    """The matrices of all experts, each weight found by itself."""
    weight, scales, table = (arguments[f"{matrix}_{part}"] for part in ("weight", "scales", "table"))
    if table is None:
        return weight if scales is None else mxfp4.dequantize(weight, scales)
    columns = torch.arange(2 * weight.size(-1))
    codes = torch.where(columns % 2 == 0, weight[..., columns // 2] // 16, weight[..., columns // 2] % 16)
    return table[codes.long()] * scales[..., columns * scales.size(-1) // len(columns)]


@pytest.mark.parametrize("label", labels("experts"))
def test_experts_reference_is_transformers(label: str) -> None:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    arguments = CASES[label][1]
    x, indices, weights = arguments["x"], arguments["expert_indices"], arguments["routing_weights"]
    experts, inter = arguments["down_bias"].size(0), arguments["gate_up_bias"].size(1) // 2
    config = GptOssConfig(hidden_size=x.size(1), intermediate_size=inter, num_local_experts=experts)
    module = GptOssExperts(config)
    assert (module.alpha, module.limit) == (arguments["alpha"], arguments["limit"])
    module.load_state_dict(
        {
            "gate_up_proj": plain(arguments, "gate_up").mT,
            "gate_up_proj_bias": arguments["gate_up_bias"],
            "down_proj": plain(arguments, "down").mT,
            "down_proj_bias": arguments["down_bias"],
        }
    )
    # Theirs has no -1: such choices go to an expert with weight zero.
    with torch.no_grad():
        expected = module(x, indices.clamp(min=0), torch.where(indices >= 0, weights, 0.0))
    got = OPS["experts"].reference(**arguments)
    assert deviation(got, expected).within(TOLERANCES[torch.float32])


@pytest.mark.parametrize("label", labels("sink_attention"))
def test_attention_reference_is_transformers(label: str) -> None:
    """The keys that each sequence may see are put in order and given to eager_attention_forward."""
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    arguments = CASES[label][1]
    query, positions, window = arguments["query"], arguments["positions"], arguments["window"]
    caches = arguments["k_cache"], arguments["v_cache"]
    pages, size = arguments["pages"], caches[0].size(2)
    got = OPS["sink_attention"].reference(**arguments)
    module = SimpleNamespace(
        num_key_value_groups=query.size(2) // caches[0].size(1), sinks=arguments["sinks"], training=False
    )
    for sequence, slot in enumerate(arguments["slots"].tolist()):
        at = positions[sequence]
        valid = at >= 0
        assert torch.equal(got[sequence][~valid], torch.zeros_like(got[sequence][~valid]))
        if not valid.any():
            continue
        first = max(0, int(at[valid].min()) - window + 1) if window else 0
        keys_at = torch.arange(first, int(at.max()) + 1)
        page, row = pages[slot, keys_at // size], keys_at % size
        keys, values = (cache[page, :, row].transpose(0, 1)[None] for cache in caches)
        seen = keys_at[None] <= at[valid][:, None]
        if window:
            seen &= keys_at[None] > at[valid][:, None] - window
        mask = torch.where(seen, 0.0, float("-inf"))[None, None]
        q = query[sequence][valid].transpose(0, 1)[None]
        expected, _ = eager_attention_forward(module, q, keys, values, mask, scaling=arguments["scale"], dropout=0.0)
        assert deviation(got[sequence][valid], expected[0]).within(TOLERANCES[torch.float32])


@pytest.mark.parametrize(
    ("args", "kwargs", "found"),
    [
        ((1, 2), {}, "positions, inv_freq"),
        ((1, 2), {"inv_freq": 3}, "positions, inv_freq"),
        ((1, 2, 3, 4), {}, "positions, inv_freq, concentration"),
        ((1, 2), {"scale": 3}, "positions, inv_freq, scale"),
    ],
    ids=["missing", "given twice", "too many", "unknown"],
)
def test_wrong_arguments_are_refused(args: tuple[Any, ...], kwargs: dict[str, Any], found: str) -> None:
    with pytest.raises(TypeError, match=f"gptoss::rotary: found arguments {found}, expected positions, inv_freq, conc"):
        OPS["rotary"].arguments(args, kwargs)


@pytest.mark.parametrize("label", CASES)
def test_drawn_arguments_are_like_those_of_the_call(label: str) -> None:
    """For tuning: same names, shapes and dtypes, and a call of the reference gives finite results."""
    name, arguments = CASES[label]
    op = OPS[name]
    drawn = op.draw(arguments, torch.Generator().manual_seed(0), position=17)
    assert drawn.keys() == arguments.keys()
    for key, value in arguments.items():
        if isinstance(value, torch.Tensor):
            assert (drawn[key].shape, drawn[key].dtype) == (value.shape, value.dtype)
        else:
            assert drawn[key] == value
    if "positions" in drawn:
        length = drawn["positions"].size(-1)
        first = drawn["positions"].reshape(-1, length)[0]
        assert torch.equal(first, torch.arange(int(first[0]), int(first[0]) + length)) and int(first[0]) % length == 0
    returned = op.reference(**drawn)
    results = op.results(returned, drawn)
    assert results and all(bool(torch.isfinite(result.float()).all()) for result in results)


def test_deviation() -> None:
    want = torch.tensor([1.0, -1.0, 0.0, 1.0])
    close = deviation(want + torch.tensor([0.0, 0.0, 0.03, 0.0]), want)
    assert close.max == pytest.approx(0.03 / 0.75**0.5) and close.rms == pytest.approx(close.max / 2)
    assert not deviation(torch.tensor([float("nan")] * 4), want).within(close.times(1e9))
    with pytest.raises(ValueError, match="shapes differ"):
        deviation(want, want[:2])


def test_every_op_with_floating_point_tokens_is_tested_for_what_it_must_not_see() -> None:
    of_training = {"grouped_linear", "grouped_outer", "packed_attention", "packed_attention_backward", "rotate"}
    assert set(OPS) - set(TOKEN_INPUTS) == {"rotary", "sum_ranks"} | of_training  # test_training_ops.py


@pytest.mark.parametrize(
    "label",
    [label for label, (name, given) in CASES.items() if name in TOKEN_INPUTS and Unseen(name, given).can_fail],
)
def test_what_is_not_seen_changes_no_bit_of_the_reference(label: str) -> None:
    name, arguments = CASES[label]
    same = Unseen(name, arguments).same_bits(OPS[name].reference, list(FILLS.values()))
    assert same == [True] * len(FILLS), dict(zip(FILLS, same, strict=True))


@pytest.mark.parametrize("part", ["k_cache", "v_cache"])
def test_what_is_seen_and_not_finite_gives_nan(part: str) -> None:
    """The reference must not hide a value that is not finite: position 128 is seen by the last sequence alone."""
    arguments = dict(CASES["sink_attention: decode ragged"][1])
    arguments[part] = arguments[part].clone()
    size = arguments[part].size(2)
    page = arguments["pages"][arguments["slots"][3], 128 // size]
    arguments[part][page, :, 128 % size, 5] = float("nan")
    out = OPS["sink_attention"].reference(**arguments)
    assert torch.isfinite(out[:3]).all() and out[3].isnan().any(dim=-1).all()


def test_a_value_that_is_not_finite_marks_its_key() -> None:
    assert marks_keys(CASES["kv_write: head_dim 80"][1], OPS["kv_write"].reference)

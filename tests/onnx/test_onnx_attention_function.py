"""The function SinkAttention alone, against attention that is written out token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx_helpers import ort  # first: it skips these tests where onnx is not installed

from onnx import TensorProto, helper  # isort: skip

from gptoss_export.targets.onnx.functions import sink_attention
from gptoss_export.targets.onnx.graph import OPSET, OWN

KV_HEADS, GROUP, DIM = 2, 3, 8
OLD, NEW = 5, 4
SCALE = 0.3


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x[: DIM // 2], x[DIM // 2 :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin))


def attention_of_one(query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor], sink: float):
    powers = [math.exp(float(query @ key) * SCALE) for key in keys]
    total = sum(powers) + math.exp(sink)
    return sum((power / total * value for power, value in zip(powers, values, strict=True)), torch.zeros(DIM))


def run_function(arrays: dict[str, np.ndarray], window: int) -> list[np.ndarray]:
    """The results of a model that is one call of the function."""
    function = sink_attention()
    info = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    node = helper.make_node(
        "SinkAttention", list(function.input), list(function.output), domain=OWN, window=window, scale=SCALE
    )
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in function.output]
    model = helper.make_model(
        helper.make_graph([node], "test", info, results),
        functions=[function],
        ir_version=10,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(OWN, 1)],
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, arrays)


@pytest.mark.parametrize("window", [-1, 1, 3, 100])
def test_attention_function(window: int) -> None:
    """Two sequences, of which the second has no tokens in two places."""
    random = torch.Generator().manual_seed(window)
    mask = torch.ones(2, OLD + NEW, dtype=torch.int64)
    mask[1, [0, 3]] = 0
    angle = torch.rand(20, DIM // 2, generator=random)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    given = {
        "query": normal(2, NEW, KV_HEADS * GROUP * DIM),
        "key": normal(2, NEW, KV_HEADS * DIM),
        "value": normal(2, NEW, KV_HEADS * DIM),
        "past_key": normal(2, KV_HEADS, OLD, DIM),
        "past_value": normal(2, KV_HEADS, OLD, DIM),
        "cos": 1.2 * angle.cos(),
        "sin": 1.2 * angle.sin(),
        "sinks": normal(KV_HEADS * GROUP),
        "mask": mask,
    }
    expected = torch.zeros(2, NEW, KV_HEADS * GROUP, DIM)
    present_key, present_value = (
        torch.cat((given[f"past_{name}"], given[name].view(2, NEW, KV_HEADS, DIM).transpose(1, 2)), dim=2)
        for name in ("key", "value")
    )
    position = mask.cumsum(dim=1) - 1
    for batch in range(2):
        for new in range(NEW):
            cos, sin = (given[name][position[batch, OLD + new]] for name in ("cos", "sin"))
            for head in range(KV_HEADS):
                present_key[batch, head, OLD + new] = rotated(present_key[batch, head, OLD + new], cos, sin)
        for new in range(NEW):
            at = int(position[batch, OLD + new])
            cos, sin = given["cos"][at], given["sin"][at]
            seen = [
                other
                for other in range(OLD + new + 1)
                if mask[batch, other] and (window < 0 or position[batch, other] > at - window)
            ]
            for head in range(KV_HEADS * GROUP):
                query = rotated(given["query"].view(2, NEW, -1, DIM)[batch, new, head], cos, sin)
                keys, values = (
                    [present[batch, head // GROUP, other] for other in seen] for present in (present_key, present_value)
                )
                expected[batch, new, head] = attention_of_one(query, keys, values, float(given["sinks"][head]))

    arrays = {name: value.numpy() for name, value in given.items()}
    out, new_key, new_value = run_function(arrays, window)
    np.testing.assert_allclose(out, expected.flatten(2).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new_key, present_key.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(new_value, present_value.numpy())


@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_what_no_query_sees_is_not_multiplied(fill: float) -> None:
    """Rows without a token, and rows before the windows of all queries, hold anything: no bit of the result changes."""
    random = np.random.default_rng(0)
    window = 2

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    mask = np.ones((2, OLD + NEW), np.int64)
    mask[1, [1, 3]] = 0
    given = {
        "query": normal(2, NEW, KV_HEADS * GROUP * DIM),
        "key": normal(2, NEW, KV_HEADS * DIM),
        "value": normal(2, NEW, KV_HEADS * DIM),
        "past_key": normal(2, KV_HEADS, OLD, DIM),
        "past_value": normal(2, KV_HEADS, OLD, DIM),
        "cos": normal(20, DIM // 2),
        "sin": normal(20, DIM // 2),
        "sinks": normal(KV_HEADS * GROUP),
        "mask": mask,
    }
    clean = run_function(given, window)[0]
    seen = {**given, "past_value": given["past_value"].copy()}
    seen["past_value"][0, :, OLD - 1] = fill
    assert not np.isfinite(run_function(seen, window)[0][0]).all()  # the last old token is in a window
    for name in ("past_key", "past_value"):
        given[name] = given[name].copy()
        given[name][0, :, : OLD - 1] = fill
        given[name][1, :, [0, 1, 2, 3]] = fill
    np.testing.assert_array_equal(run_function(given, window)[0], clean)

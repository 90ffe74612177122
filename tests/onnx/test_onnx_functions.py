"""The functions of standard operators, each alone, and what the export assumes of onnxruntime's TopK."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx_helpers import ort  # first: it skips these tests where onnx is not installed

from onnx import TensorProto, helper, numpy_helper  # isort: skip

from gptoss_export.model.expert_weights import is_mxfp4
from gptoss_export.model.mxfp4 import dequantize, quantize
from gptoss_export.model.ops import OPS
from gptoss_export.targets.onnx.functions import mxfp4_experts
from gptoss_export.targets.onnx.graph import OPSET, OWN
from gptoss_export.verification.metric import TOLERANCES, deviation

TABLES = {"gate_up_table", "down_table"}  # of other formats than MXFP4
CASES = {
    label: arguments
    for label, arguments in OPS["experts"].cases(torch.device("cpu"), torch.float32)
    if is_mxfp4(arguments["down_scales"])
}


def run_experts(arguments: dict[str, Any]) -> torch.Tensor:
    """The result of a model that is one call of the function."""
    function = mxfp4_experts()
    arrays = {name: arguments[name].numpy() for name in function.input}
    attributes = {name: arguments[name] for name in function.attribute}
    info = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    node = helper.make_node("Mxfp4Experts", list(arrays), ["out"], domain=OWN, **attributes)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, arrays["x"].shape)
    model = helper.make_model(
        helper.make_graph([node], "test", info, [out]),
        functions=[function],
        ir_version=10,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(OWN, 1)],
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, arrays)[0])


@pytest.mark.parametrize("label", CASES)
def test_experts_function(label):
    """The function alone against the op's reference, at the op's own cases."""
    function, arguments = mxfp4_experts(), CASES[label]
    assert {*function.input, *function.attribute} == set(OPS["experts"].argument_names) - TABLES
    found = deviation(run_experts(arguments), OPS["experts"].reference(**arguments))
    assert found.within(TOLERANCES[torch.float32]), found


def test_a_row_does_not_depend_on_the_others():
    """Its bits are the same, whether or not other rows go to its experts, and whatever those rows hold."""
    random = torch.Generator().manual_seed(0)
    experts, hidden, inter = 4, 96, 64

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    given: dict[str, Any] = {"x": normal(3, hidden), "routing_weights": torch.full((3, 2), 0.5)}
    given |= {"alpha": 1.702, "limit": 7.0, "gate_up_bias": normal(experts, 2 * inter)}
    given |= {"down_bias": normal(experts, hidden)}
    for name, rows, columns in ("gate_up", 2 * inter, hidden), ("down", hidden, inter):
        given[f"{name}_weight"], given[f"{name}_scales"] = quantize(normal(experts, rows, columns) * columns**-0.5)
    found = []
    for others in [[2, 3], [2, 3]], [[0, 1], [2, 3]], [[0, 1], [1, 0]]:
        for fill in 1.0, float("nan"):
            given["x"][1:] = fill
            found.append(run_experts({**given, "expert_indices": torch.tensor([[0, 1], *others])})[0])
    assert torch.isfinite(found[0]).all()
    assert all(torch.equal(row, found[0]) for row in found)


def test_every_code_and_scale_is_unpacked():
    """All 16 codes at all 256 scales, NaN included."""
    constants = [
        numpy_helper.to_array(node.attribute[0].t)
        for node in mxfp4_experts().node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    ]
    values, powers = (
        next(constant for constant in constants if constant.shape == shape) for shape in ((256, 2), (256,))
    )
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 1, 16)  # every pair of codes
    for scale in range(256):
        scales = torch.full((16, 1), scale, dtype=torch.uint8)
        with np.errstate(over="ignore"):
            found = values[blocks.numpy()].reshape(16, 32) * powers[scale]
        assert np.array_equal(found, dequantize(blocks, scales).numpy(), equal_nan=True)


def test_of_equal_router_logits_the_lower_expert_wins():
    """What the export relies on: onnxruntime's TopK, over as many experts as the models have."""
    for experts in 8, 32, 128:
        values = np.random.default_rng(0).integers(0, 3, (40, experts)).astype(np.float32)
        node = helper.make_node("TopK", ["x", "k"], ["values", "indices"])
        graph = helper.make_graph(
            [node],
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
            [helper.make_tensor_value_info("indices", TensorProto.INT64, None)],
            [numpy_helper.from_array(np.array([4]), "k")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": values})
        expected = torch.from_numpy(values).sort(dim=-1, descending=True, stable=True).indices[:, :4].numpy()
        assert np.array_equal(found, expected)

"""A model of one small layer of experts that knows its own results: whether an onnxruntime has the kernel, and reads the weights
as they are packed here. A wrong layout is no error of the op, and shows in the values alone.

    errors [2] float32     relative error (root mean square) of a decode's row and of a prompt's rows
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from ...model import mxfp4
from ...model.ops import OPS
from .compile import PROBE
from .graph import MICROSOFT, OPSET, Nodes
from .qmoe import qmoe
from .repack import repack

_EXPERTS, _CHOICES, _HIDDEN, _INTER, _ROWS = 4, 2, 256, 256, (1, 40)
_ALPHA, _LIMIT = 1.702, 7.0


def write_probe(folder: Path, ir_version: int) -> Path:
    """Write the model; returns its name."""
    random = torch.Generator().manual_seed(1)
    g, tensors = Nodes(), {}

    def tensor(name: str, value: torch.Tensor, dtype: int) -> str:
        whole = value.contiguous().view(torch.uint8).numpy().tobytes()
        tensors[name] = helper.make_tensor(name, dtype, value.shape, whole, raw=True)
        return name

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).bfloat16()

    stored, packed = [], []
    for label, rows, columns in ("gate_up", 2 * _INTER, _HIDDEN), ("down", _HIDDEN, _INTER):
        blocks, scales = mxfp4.quantize(normal(_EXPERTS, rows, columns) * columns**-0.5)
        bias = normal(_EXPERTS, rows)
        stored += [blocks, scales, bias]
        turned = torch.stack([repack(expert) for expert in blocks])
        packed += [
            tensor(f"{label}_blocks", turned, TensorProto.UINT8),
            tensor(f"{label}_scales", scales, TensorProto.FLOAT8E8M0),
            tensor(f"{label}_bias", bias, TensorProto.BFLOAT16),
        ]
    errors = []
    for rows in _ROWS:
        x, logits = normal(rows, _HIDDEN), normal(rows, _EXPERTS)
        best, indices = logits.float().topk(_CHOICES)
        expected = OPS["mxfp4_experts"].reference(x.float(), best.softmax(dim=1), indices, *stored, _ALPHA, _LIMIT)
        given = tensor(f"x_{rows}", x, TensorProto.BFLOAT16), tensor(f"logits_{rows}", logits, TensorProto.BFLOAT16)
        found = g.cast(qmoe(g, *given, packed, _EXPERTS, _CHOICES, _ALPHA, _LIMIT), TensorProto.FLOAT)
        wanted = tensor(f"expected_{rows}", expected, TensorProto.FLOAT)
        difference = g.add("Sub", found, wanted)
        size = g.constant(expected.square().mean().sqrt().item(), np.float32)
        mean = g.add("ReduceMean", g.add("Mul", difference, difference), g.constant([0, 1]), keepdims=0)
        errors.append(g.reshape(g.add("Div", g.add("Sqrt", mean), size), 1))
    g.add("Concat", *errors, outputs=["errors"], axis=0)
    output = helper.make_tensor_value_info("errors", TensorProto.FLOAT, [len(_ROWS)])
    graph = helper.make_graph(g.nodes, "probe", [], [output], list(tensors.values()))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="gptoss-export")
    onnx.save(model, folder / PROBE)
    return Path(PROBE)

"""probe.onnx: one small layer of experts with its expected results.

It shows whether an onnxruntime has the experts' kernel, and whether it reads the weights in the layout of repack.py. In
another layout the op computes wrong values without an error.

    errors [2] float32   relative error (root mean square) of a decode's row, and of a prompt's rows
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from ...machine_limits import writes
from ...model import mxfp4
from ...model.ops import OPS
from .graph import MICROSOFT, OPSET, Nodes
from .model_files import PROBE
from .qmoe import qmoe
from .repack import repack
from .writer_cuda import IR_VERSION

_EXPERTS, _CHOICES, _HIDDEN, _INTER = 4, 2, 256, 256
_ROWS = (1, 40)  # of a decode and of a prompt: QMoE has a kernel for each
_ALPHA, _LIMIT = 1.702, 7.0


def write_probe(folder: Path) -> Path:
    """Write the model into `folder`; returns its name."""
    random = torch.Generator().manual_seed(1)
    g = Nodes()
    tensors: dict[str, TensorProto] = {}

    def tensor(name: str, value: torch.Tensor, dtype: int) -> str:
        data = value.contiguous().view(torch.uint8).numpy().tobytes()
        tensors[name] = helper.make_tensor(name, dtype, value.shape, data, raw=True)
        return name

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device="cpu").bfloat16()

    stored: dict[str, torch.Tensor | None] = {}
    packed: list[str] = []
    for label, rows, columns in ("gate_up", 2 * _INTER, _HIDDEN), ("down", _HIDDEN, _INTER):
        blocks, scales = mxfp4.quantize(normal(_EXPERTS, rows, columns) * columns**-0.5)
        bias = normal(_EXPERTS, rows)
        stored |= {f"{label}_weight": blocks, f"{label}_scales": scales, f"{label}_table": None, f"{label}_bias": bias}
        repacked = torch.stack([repack(expert) for expert in blocks])
        packed += [
            tensor(f"{label}_blocks", repacked, TensorProto.UINT8),
            tensor(f"{label}_scales", scales, TensorProto.FLOAT8E8M0),
            tensor(f"{label}_bias", bias, TensorProto.BFLOAT16),
        ]
    errors = []
    for rows in _ROWS:
        x, logits = normal(rows, _HIDDEN), normal(rows, _EXPERTS)
        best, indices = logits.float().topk(_CHOICES)
        expected = OPS["experts"].reference(
            x=x.float(),
            routing_weights=best.softmax(dim=1),
            expert_indices=indices,
            **stored,
            alpha=_ALPHA,
            limit=_LIMIT,
        )
        assert isinstance(expected, torch.Tensor)
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
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="gptoss-export")
    with writes(folder / PROBE):
        onnx.save(model, folder / PROBE)
    return Path(PROBE)

"""The two ops that ONNX has no node for, as functions of standard operators: any runtime runs them.

SinkAttention(query, key, value, past_key, past_value, cos, sin, sinks, mask) -> out, present_key, present_value

    query [B, S, Hq D], key and value [B, S, Hkv D]      before RoPE, the new tokens
    past_key, past_value [B, Hkv, P, D]                   of all tokens before, keys after RoPE
    cos, sin [C, D / 2]                                   by position; sinks [Hq]; mask [B, P + S] int64, 1: a token
    out [B, S, Hq D], present_key, present_value [B, Hkv, P + S, D]

    A token's position is the number of ones before it in its row of the mask, so rows of unequal lengths may
    have zeros anywhere. Attributes: window (tokens that one sees, itself included; -1: all), scale.

Mxfp4Experts(x, weights, indices, blocks and scales and bias of gate_up, then of down) -> out

    as gptoss::mxfp4_experts in gptoss_export/ops/experts.py, in float32. A loop over the experts, each of which unpacks its
    matrices only if a token goes to it, and multiplies with those tokens' rows only. Attributes: alpha, limit.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from .graph import OPSET, OWN, Nodes

_MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # of E2M1; codes 8 to 15 are their negatives
_IMPORTS = [helper.make_opsetid("", OPSET)]


def sink_attention() -> onnx.FunctionProto:
    names = ["query", "key", "value", "past_key", "past_value", "cos", "sin", "sinks", "mask"]
    g = Nodes()
    window, scale = g.attribute("window", "int"), g.attribute("scale", "float")
    batch, new, total = g.size("query", 0), g.size("query", 1), g.size("mask", 1)
    kv_heads, dim = g.size("past_key", 1), g.size("past_key", 3)
    counts = g.add("Sub", g.add("CumSum", "mask", g.constant(1)), g.constant(1))  # positions [B, P + S], -1 in front
    mine = g.slice(counts, g.add("Sub", total, new), total, 1)
    cos, sin = (g.unsqueeze(g.add("Gather", table, g.add("Max", mine, g.constant(0)), axis=0), 2) for table in ("cos", "sin"))

    def heads(value: str) -> str:
        return g.reshape(value, 0, 0, -1, dim)

    def rotated(value: str) -> str:
        first, second = g.add("Split", value, outputs=2, axis=-1, num_outputs=2)
        halves = (
            g.add("Sub", g.add("Mul", first, cos), g.add("Mul", second, sin)),
            g.add("Add", g.add("Mul", second, cos), g.add("Mul", first, sin)),
        )
        return g.add("Concat", *halves, axis=-1)

    def heads_first(value: str) -> str:
        return g.add("Transpose", value, perm=[0, 2, 1, 3])

    g.add("Concat", "past_key", heads_first(rotated(heads("key"))), outputs=["present_key"], axis=2)
    g.add("Concat", "past_value", heads_first(heads("value")), outputs=["present_value"], axis=2)
    query = g.reshape(heads_first(rotated(heads("query"))), batch, kv_heads, -1, dim)  # a group's heads share keys
    scores = g.add("MatMul", query, g.add("Transpose", "present_key", perm=[0, 1, 3, 2]))
    scores = g.add("Mul", g.reshape(scores, batch, -1, new, total), scale)
    key_at, query_at = g.unsqueeze(counts, 1), g.unsqueeze(mine, 2)
    seen = g.add("And", g.add("LessOrEqual", key_at, query_at), g.unsqueeze(g.cast("mask", TensorProto.BOOL), 1))
    near = g.add("Greater", key_at, g.add("Sub", query_at, window))
    near = g.add("Or", near, g.add("Less", window, g.constant(0)))
    scores = g.add("Where", g.unsqueeze(g.add("And", seen, near), 1), scores, g.constant(-np.inf, np.float32))
    column = g.add("Concat", batch, g.size("sinks", 0), new, g.constant([1]), axis=0)
    sinks = g.add("Expand", g.reshape("sinks", 1, -1, 1, 1), column)
    shares = g.add("Softmax", g.add("Concat", scores, sinks, axis=3), axis=3)
    shares = g.reshape(g.slice(shares, 0, total, 3), batch, kv_heads, -1, total)
    out = g.reshape(g.add("MatMul", shares, "present_value"), batch, -1, new, dim)
    g.add("Reshape", heads_first(out), g.constant([0, 0, -1]), outputs=["out"])
    results = ["out", "present_key", "present_value"]
    return helper.make_function(OWN, "SinkAttention", names, results, g.nodes, _IMPORTS, ["window", "scale"])


def mxfp4_experts() -> onnx.FunctionProto:
    names = ["x", "weights", "indices"]
    names += [f"{matrix}_{part}" for matrix in ("gate_up", "down") for part in ("blocks", "scales", "bias")]
    g = Nodes()
    alpha, limit = g.attribute("alpha", "float"), g.attribute("limit", "float")
    codes = [*_MAGNITUDES, *(-value for value in _MAGNITUDES)]
    pairs = g.constant([(codes[byte & 15], codes[byte >> 4]) for byte in range(256)], np.float32)  # the low half is first
    powers = g.constant([*(2.0 ** (byte - 127) for byte in range(255)), np.nan], np.float32)
    nothing = g.add("ConstantOfShape", g.add("Shape", "x"), value=helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]))
    body = helper.make_graph(
        _expert(pairs, powers, alpha, limit), "expert",
        [helper.make_tensor_value_info("expert", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("new_sum", TensorProto.FLOAT, None)],
    )  # fmt: skip
    count = g.add("Squeeze", g.size("gate_up_blocks", 0))
    g.add("Loop", count, "", nothing, outputs=["out"], body=body)
    return helper.make_function(OWN, "Mxfp4Experts", names, ["out"], g.nodes, _IMPORTS, ["alpha", "limit"])


def _expert(pairs: str, powers: str, alpha: str, limit: str) -> list[onnx.NodeProto]:
    """The body of the loop: adds what expert `expert` gives to the rows of `sum` whose tokens go to it."""
    g = Nodes("expert.")
    g.add("Identity", "go", outputs=["go_on"])
    hit = g.add("Equal", "indices", "expert")
    chosen = g.reduce("ReduceMax", g.cast(hit, TensorProto.INT32), 1)
    share = g.reduce("ReduceSum", g.add("Where", hit, "weights", g.constant(0, np.float32)), 1)
    any_chosen = g.cast(g.reduce("ReduceMax", chosen, 0), TensorProto.BOOL)

    t = Nodes("chosen.")
    rows = t.reshape(t.add("NonZero", chosen), -1)

    def matrix(name: str) -> str:
        """One expert's matrix [N, K], two weights a byte."""
        blocks, scales = (t.add("Gather", f"{name}_{part}", "expert", axis=0) for part in ("blocks", "scales"))
        values = t.reshape(t.add("Gather", pairs, t.cast(blocks, TensorProto.INT32), axis=0), 0, 0, -1)
        power = t.add("Gather", powers, t.cast(scales, TensorProto.INT32), axis=0)
        return t.reshape(t.add("Mul", values, t.unsqueeze(power, 2)), 0, -1)

    def product(x: str, name: str) -> str:
        bias = t.cast(t.add("Gather", f"{name}_bias", "expert", axis=0), TensorProto.FLOAT)
        return t.add("Gemm", x, matrix(name), bias, transB=1)

    hidden = product(t.add("Gather", "x", rows, axis=0), "gate_up")
    end = np.iinfo(np.int64).max
    gate, up = t.slice(hidden, 0, int(end), 1, 2), t.slice(hidden, 1, int(end), 1, 2)
    gate = t.add("Min", gate, limit)
    up = t.add("Max", t.add("Min", up, limit), t.add("Neg", limit))
    act = t.add("Mul", gate, t.add("Sigmoid", t.add("Mul", gate, alpha)))
    act = t.add("Mul", act, t.add("Add", up, t.constant(1, np.float32)))
    added = t.add("Mul", product(act, "down"), t.unsqueeze(t.add("Gather", share, rows), 1))
    t.add("ScatterND", "sum", t.unsqueeze(rows, 1), added, outputs=["added"], reduction="add")
    f = Nodes("idle.")
    f.add("Identity", "sum", outputs=["kept"])
    branches = [
        helper.make_graph(nodes, label, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for nodes, label, name in ((t.nodes, "chosen", "added"), (f.nodes, "idle", "kept"))
    ]
    g.add("If", any_chosen, outputs=["new_sum"], then_branch=branches[0], else_branch=branches[1])
    return g.nodes

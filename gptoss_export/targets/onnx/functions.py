"""The two ops that ONNX has no node for, as functions of standard operators, so that any runtime runs them.

SinkAttention(query, key, value, past_key, past_value, cos, sin, sinks, mask) -> out, present_key, present_value

    query [B, S, Hq D]; key, value [B, S, Hkv D]   the new tokens, before RoPE
    past_key, past_value [B, Hkv, P, D]            the old tokens; keys after RoPE
    cos, sin [C, D / 2]                            by position
    sinks [Hq]
    mask [B, P + S] int64                          1: a token
    out [B, S, Hq D]
    present_key, present_value [B, Hkv, P + S, D]

    A token's position is the number of ones before it in its row of the mask. So rows of unequal lengths may have zeros
    anywhere. Attributes: window (tokens that a query sees, itself included; -1: all), scale.

    A key and a value that no query of the sequence sees change no bit of `out`, whatever they hold: NaN and infinity
    included. All queries of a call multiply the same values. So a value that some of them see has to be finite.

Mxfp4Experts(x, routing_weights, expert_indices, then weight (blocks), scales and bias of gate_up and of down) -> out

    As gptoss::experts (gptoss_export/model/ops/experts.py), in float32. A loop over the experts. Each one unpacks
    its matrices only if a token goes to it, and multiplies the rows of those tokens only. In a call of several rows, no
    bit of a row depends on the others. Attributes: alpha, limit.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from .graph import OPSET, OWN, Nodes

_MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # of E2M1; codes 8 to 15 are their negatives
_IMPORTS = [helper.make_opsetid("", OPSET)]
_TO_THE_END = int(np.iinfo(np.int64).max)


def sink_attention() -> onnx.FunctionProto:
    """The function SinkAttention."""
    inputs = ["query", "key", "value", "past_key", "past_value", "cos", "sin", "sinks", "mask"]
    g = Nodes()
    window, scale = g.attribute("window", "int"), g.attribute("scale", "float")
    batch, new, total = g.size("query", 0), g.size("query", 1), g.size("mask", 1)
    kv_heads, dim = g.size("past_key", 1), g.size("past_key", 3)
    # Positions [B, P + S] of all tokens; a zero in front of the first token has -1. Positions [B, S] of the new ones.
    positions = g.add("Sub", g.add("CumSum", "mask", g.constant(1)), g.constant(1))
    new_positions = g.slice(positions, g.add("Sub", total, new), total, 1)
    cos, sin = (
        g.unsqueeze(g.add("Gather", values, g.add("Max", new_positions, g.constant(0)), axis=0), 2)
        for values in ("cos", "sin")
    )

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
    # Query heads by the key head that they share: [B, Hkv, G S, D].
    query = g.reshape(heads_first(rotated(heads("query"))), batch, kv_heads, -1, dim)
    scores = g.add("MatMul", query, g.add("Transpose", "present_key", perm=[0, 1, 3, 2]))
    scores = g.add("Mul", g.reshape(scores, batch, -1, new, total), scale)
    key_position, query_position = g.unsqueeze(positions, 1), g.unsqueeze(new_positions, 2)
    seen = g.add(
        "And",
        g.add("LessOrEqual", key_position, query_position),
        g.unsqueeze(g.cast("mask", TensorProto.BOOL), 1),
    )
    in_window = g.add("Greater", key_position, g.add("Sub", query_position, window))
    in_window = g.add("Or", in_window, g.add("Less", window, g.constant(0)))
    allowed = g.unsqueeze(g.add("And", seen, in_window), 1)
    scores = g.add("Where", allowed, scores, g.constant(-np.inf, np.float32))
    # A sink is one more column of the scores, which takes its share and is then dropped.
    column = g.add("Concat", batch, g.size("sinks", 0), new, g.constant([1]), axis=0)
    sinks = g.add("Expand", g.reshape("sinks", 1, -1, 1, 1), column)
    shares = g.add("Softmax", g.add("Concat", scores, sinks, axis=3), axis=3)
    shares = g.reshape(g.slice(shares, 0, total, 3), batch, kv_heads, -1, total)
    # A share of zero times NaN is NaN. So a value that no query sees is replaced before it is multiplied.
    seen_by_any = g.cast(g.reduce("ReduceMax", g.cast(allowed, TensorProto.INT32), 2), TensorProto.BOOL)
    values = g.add("Where", g.unsqueeze(seen_by_any, 3), "present_value", g.constant(0, np.float32))
    out = g.reshape(g.add("MatMul", shares, values), batch, -1, new, dim)
    g.add("Reshape", heads_first(out), g.constant([0, 0, -1]), outputs=["out"])
    results = ["out", "present_key", "present_value"]
    return helper.make_function(OWN, "SinkAttention", inputs, results, g.nodes, _IMPORTS, ["window", "scale"])


def mxfp4_experts() -> onnx.FunctionProto:
    """The function Mxfp4Experts."""
    inputs = ["x", "routing_weights", "expert_indices"]
    inputs += [f"{matrix}_{part}" for matrix in ("gate_up", "down") for part in ("weight", "scales", "bias")]
    g = Nodes()
    alpha, limit = g.attribute("alpha", "float"), g.attribute("limit", "float")
    codes = [*_MAGNITUDES, *(-value for value in _MAGNITUDES)]
    # By byte: the values of both codes, the lower half first.
    pairs = g.constant([(codes[byte & 15], codes[byte >> 4]) for byte in range(256)], np.float32)
    powers = g.constant([*(2.0 ** (byte - 127) for byte in range(255)), np.nan], np.float32)
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    zeros = g.add("ConstantOfShape", g.add("Shape", "x"), value=zero)
    body = helper.make_graph(
        _expert(pairs, powers, alpha, limit),
        "expert",
        [
            helper.make_tensor_value_info("expert", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("new_sum", TensorProto.FLOAT, None),
        ],
    )
    count = g.add("Squeeze", g.size("gate_up_weight", 0))
    g.add("Loop", count, "", zeros, outputs=["out"], body=body)
    return helper.make_function(OWN, "Mxfp4Experts", inputs, ["out"], g.nodes, _IMPORTS, ["alpha", "limit"])


def _expert(pairs: str, powers: str, alpha: str, limit: str) -> list[onnx.NodeProto]:
    """The body of the loop: adds the output of expert `expert` to the rows of `sum` whose tokens go to it."""
    g = Nodes("expert.")
    g.add("Identity", "go", outputs=["go_on"])
    is_chosen = g.add("Equal", "expert_indices", "expert")
    chosen = g.reduce("ReduceMax", g.cast(is_chosen, TensorProto.INT32), 1)
    share = g.reduce("ReduceSum", g.add("Where", is_chosen, "routing_weights", g.constant(0, np.float32)), 1)
    any_chosen = g.cast(g.reduce("ReduceMax", chosen, 0), TensorProto.BOOL)
    idle = Nodes("idle.")
    idle.add("Identity", "sum", outputs=["kept"])
    branches = [
        helper.make_graph(nodes, label, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for nodes, label, name in (
            (_chosen_expert(pairs, powers, alpha, limit, chosen, share), "chosen", "added"),
            (idle.nodes, "idle", "kept"),
        )
    ]
    g.add("If", any_chosen, outputs=["new_sum"], then_branch=branches[0], else_branch=branches[1])
    return g.nodes


def _chosen_expert(pairs: str, powers: str, alpha: str, limit: str, chosen: str, share: str) -> list[onnx.NodeProto]:
    """The branch of an expert that some token goes to: unpacks its matrices and adds its output to `sum`."""
    g = Nodes("chosen.")
    rows = g.reshape(g.add("NonZero", chosen), -1)
    # onnxruntime adds up the product of one row in another order than that of several. So an expert's only row is
    # doubled where the call has more rows: its bits do not depend on which experts the others go to.
    count = g.size(rows, 0)
    doubled = g.add("Max", g.add("Sub", g.add("Min", g.size("x", 0), g.constant([2])), count), g.constant([0]))
    gathered = g.add("Concat", rows, g.slice(rows, 0, doubled, 0), axis=0)

    def matrix(name: str) -> str:
        """The expert's matrix [N, K], of two weights a byte."""
        blocks, scales = (g.add("Gather", f"{name}_{part}", "expert", axis=0) for part in ("weight", "scales"))
        values = g.reshape(g.add("Gather", pairs, g.cast(blocks, TensorProto.INT32), axis=0), 0, 0, -1)
        power = g.add("Gather", powers, g.cast(scales, TensorProto.INT32), axis=0)
        return g.reshape(g.add("Mul", values, g.unsqueeze(power, 2)), 0, -1)

    def product(x: str, name: str) -> str:
        bias = g.cast(g.add("Gather", f"{name}_bias", "expert", axis=0), TensorProto.FLOAT)
        return g.add("Gemm", x, matrix(name), bias, transB=1)

    hidden = product(g.add("Gather", "x", gathered, axis=0), "gate_up")
    gate, up = g.slice(hidden, 0, _TO_THE_END, 1, 2), g.slice(hidden, 1, _TO_THE_END, 1, 2)
    gate = g.add("Min", gate, limit)
    up = g.add("Max", g.add("Min", up, limit), g.add("Neg", limit))
    act = g.add("Mul", gate, g.add("Sigmoid", g.add("Mul", gate, alpha)))
    act = g.add("Mul", act, g.add("Add", up, g.constant(1, np.float32)))
    out = g.slice(product(act, "down"), 0, count, 0)
    added = g.add("Mul", out, g.unsqueeze(g.add("Gather", share, rows), 1))
    g.add("ScatterND", "sum", g.unsqueeze(rows, 1), added, outputs=["added"], reduction="add")
    return g.nodes

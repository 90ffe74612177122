"""`--target tensorrt`: cut, converters, plugins, schedule, and the artifact, on a machine without a GPU.

Engines are built by TensorRT for RTX and cannot run here. What they are given is checked all the same: a whole
schedule is emulated, each segment by PyTorch and each kernel by Triton's interpreter, on one arena and the very
references that the runner binds, against the program as it was traced. The interpreter has to be switched on
before Triton is imported, so that half is a process of its own, which is this file run as a script.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gptoss_export.build import BuildOptions, build
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import ArtifactError, BuildError, LoweringError
from gptoss_export.compiler.export import Shapes, trace
from gptoss_export.compiler.lower import lower, plugin_parts
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.verify.metric import TOLERANCES, Error, error
from gptoss_export.progress import Steps
from gptoss_export.targets import TARGETS, Plan

CPU = torch.device("cpu")
ARCH = "sm_89"
SHAPES = Shapes(max_batch=2, max_context=600, prefill_chunks=(16,))  # long enough for shares of the context

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")


def lowered(dtype: torch.dtype = torch.bfloat16, layers: int = PRESETS["tiny"].num_hidden_layers, arch: str = ARCH):
    """The tiny model's programs as the target lowers them, each with the program as traced."""
    kinds = PRESETS["tiny"].layer_types[:layers]
    model = dataclasses.replace(PRESETS["tiny"], num_hidden_layers=layers, layer_types=kinds)
    plan = Plan(model, SHAPES, "cuda", arch, (), (), {}, Path(), Steps())
    implementations = TARGETS["tensorrt"].implementations(plan)
    for trace_now in trace(model, SHAPES, dtype, CPU).values():
        program = trace_now()
        yield program, lower(program, implementations)


# ---- cutting and planning ----------------------------------------------------------------------------------


def test_layers_share_engines():
    from gptoss_export.targets.tensorrt.partition import Launch, Segment, cut

    layers = PRESETS["tiny"].num_hidden_layers
    for _, program in lowered():
        steps = cut(program.exported, program.name)
        segments = [step.key for step in steps if isinstance(step, Segment)]
        launches = [step for step in steps if isinstance(step, Launch)]
        if program.name.startswith("unembed"):
            assert len(segments) == 1 and not launches
            continue
        # Before the first attention, between attention and experts, between layers, after the last.
        assert len(segments) == 2 * layers + 1 and len(set(segments)) == 4
        assert len(launches) >= 5 * layers


def test_a_large_product_of_one_row_begins_a_segment():
    """What makes the row is computed once; several rows, and few weights, stay where they are."""
    from gptoss_export.targets.tensorrt.partition import cut

    class Model(nn.Module):
        def forward(self, x, weight):
            return (nn.functional.linear(x * 2, weight) + 1,)

    def segments(rows: int, width: int) -> int:
        exported = torch.export.export(Model(), (torch.ones(rows, width), torch.ones(1024, width)), strict=False)
        return len(cut(exported, "test"))

    assert [segments(1, 1024), segments(2, 1024), segments(1, 512)] == [2, 1, 1]


def test_what_is_alive_together_lies_apart():
    from gptoss_export.targets.tensorrt.partition import cut
    from gptoss_export.targets.tensorrt.memory_plan import bound, plan
    from gptoss_export.targets.tensorrt.schedule import ARENA

    for _, program in lowered():
        steps = cut(program.exported, program.name)
        places, arena = plan(program.exported, steps)
        lives: dict = {}
        for index, step in enumerate(steps):
            for node in bound(step):
                lives.setdefault(node, []).append(index)
        within = [node for node in lives if places[node].place == ARENA]
        extent = {
            node: (places[node].value, places[node].value + node.meta["val"].numel() * node.meta["val"].element_size())
            for node in within
        }
        assert all(end <= arena and begin % 256 == 0 for begin, end in extent.values())
        for one in within:
            for other in within:
                together = min(lives[one]) <= max(lives[other]) and min(lives[other]) <= max(lives[one])
                apart = extent[one][1] <= extent[other][0] or extent[other][1] <= extent[one][0]
                assert one is other or apart or not together, (one, other)


def test_results_that_share_memory_are_refused():
    from gptoss_export.targets.tensorrt.partition import cut
    from gptoss_export.targets.tensorrt.memory_plan import plan

    for function, message in (
        (lambda x: (x + 1, x), "result 1 .* shares memory with Reference.*input"),
        (lambda x: ((y := x + 1), y.view(-1)), "result 1 .* shares memory with Reference.*output"),
    ):
        exported = torch.export.export(_Calls(function), (_f(2, 3),), strict=False)
        with pytest.raises(LoweringError, match=message):
            plan(exported, cut(exported, "test"))


# ---- a schedule, emulated ----------------------------------------------------------------------------------


def _recipe(program) -> dict:
    """A program's steps in a form that another process can carry out."""
    from gptoss_export.targets.tensorrt.partition import Segment, cut
    from gptoss_export.targets.tensorrt.memory_plan import bound, plan

    steps = cut(program.exported, program.name)
    places, arena = plan(program.exported, steps)

    def tensor(node):
        value = node.meta["val"]
        return dataclasses.astuple(places[node]), tuple(value.shape), value.dtype

    recipe = []
    for step in steps:
        if isinstance(step, Segment):
            recipe.append({"segment": _module(step), "tensors": [tensor(node) for node in bound(step)], "inputs": len(step.inputs)})
            continue
        configured = hasattr(step.kernel, "configs")
        kernel = step.kernel.fn if configured else step.kernel
        recipe.append({
            "kernel": (kernel.__module__, kernel.__name__),
            "arguments": {name: tensor(value) if name in step.tensors else value for name, value in step.arguments.items()},
            "tensors": list(step.tensors),
            "grid": step.grid,
        })  # fmt: skip
    outputs = [(item.shape, item.dtype) for item in program.outputs]
    return {"name": program.name, "arena": arena, "steps": recipe, "outputs": outputs}


def _module(segment) -> torch.fx.GraphModule:
    graph = torch.fx.Graph()
    copies = {node: graph.placeholder(f"in{index}") for index, node in enumerate(segment.inputs)}
    for node in segment.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta.clear()
    graph.output(tuple(copies[node] for node in segment.outputs))
    return torch.fx.GraphModule(nn.Module(), graph)


def _fill(spec) -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(map(ord, spec.name)))
    if spec.role == "cache":
        return torch.zeros(spec.shape, dtype=spec.dtype)
    if spec.name.endswith("_scales"):
        return torch.randint(118, 123, spec.shape, dtype=torch.uint8, generator=random)
    if spec.dtype == torch.uint8:
        return torch.randint(0, 256, spec.shape, dtype=torch.uint8, generator=random)
    values = torch.randn(spec.shape, generator=random)
    return (1 + 0.1 * values if "norm" in spec.name else values * spec.shape[-1] ** -0.5).to(spec.dtype)


def _calls() -> list[tuple[str, dict[str, torch.Tensor]]]:
    """Two chunks, the second padded, past the window and around the ring; steps with and without an idle sequence."""
    random = torch.Generator().manual_seed(1)

    def data(tokens: int, positions: list[int], slots: list[int]):
        return {
            "tokens": torch.randint(0, PRESETS["tiny"].vocab_size, (tokens,), generator=random),
            "positions": torch.tensor(positions), "slots": torch.tensor(slots),
        }  # fmt: skip

    chunks = [data(16, [*range(24, 40)], [1]), data(16, [*range(40, 51), *[-1] * 5], [1])]
    steps = [data(2, positions, [0, 1]) for positions in ([-1, 51], [0, 52])]
    hidden = {"hidden": torch.randn((1, PRESETS["tiny"].hidden_size), generator=random)}
    return [*(("prefill_16", call) for call in chunks), *(("decode", step) for step in steps), ("unembed_1", hidden)]


def test_schedule_is_the_program(tmp_path):
    programs = {program.name: (program, after) for program, after in lowered(torch.float32, layers=2)}  # one of each kind
    shared = {spec.name: _fill(spec) for program, _ in programs.values() for spec in program.inputs if spec.role != "data"}
    expected = []
    initial = {name: value.clone() for name, value in shared.items()}
    for name, data in _calls():
        program = programs[name][0]
        flat = [(data | shared)[spec.name] for spec in program.inputs]
        tree = torch.utils._pytree.tree_unflatten(flat, program.exported.call_spec.in_spec)
        results = program.exported.module(check_guards=False)(*tree[0], **tree[1])
        expected.append([value.clone() for value in torch.utils._pytree.tree_leaves(results)])
    work = tmp_path / "work.pt"
    inputs = {name: [spec.name for spec in program.inputs] for name, (program, _) in programs.items()}
    recipes = {name: _recipe(after) for name, (_, after) in programs.items()}
    torch.save({"recipes": recipes, "inputs": inputs, "shared": initial, "calls": _calls()}, work)
    done = subprocess.run(
        [sys.executable, __file__, work], capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(work.with_suffix(".out"))
    for (name, _), actual, wanted in zip(_calls(), found["results"], expected, strict=True):
        for got, want in zip(actual, wanted, strict=True):
            if got.dtype == torch.int64:
                assert torch.equal(got, want), name
                continue
            rows = slice(0, 11) if name == "prefill_16" else slice(None)  # the rest may be padding
            if name == "decode":
                rows = slice(1, 2)  # the sequence that is never idle
            distance = error(got[rows], want[rows])
            assert distance.within(TOLERANCES[torch.float32]), (name, distance)
    for name, want in shared.items():
        if "_cache." in name:
            distance = error(found["shared"][name][:, :, :-1], want[:, :, :-1])
            assert distance.within(TOLERANCES[torch.float32]), (name, distance)


def _emulate(work: Path) -> None:
    import importlib

    job = torch.load(work, weights_only=False)
    shared, results = job["shared"], []
    for name, data in job["calls"]:
        recipe = job["recipes"][name]
        inputs = [(data | shared)[key] for key in job["inputs"][name]]
        outputs = [torch.empty(shape, dtype=dtype) for shape, dtype in recipe["outputs"]]
        arena = torch.full((max(recipe["arena"], 1),), 0xFF, dtype=torch.uint8)  # NaN, until written

        def at(reference, shape, dtype):
            place, value = reference
            if place != "arena":
                return {"input": inputs, "output": outputs}[place][value].view(shape)  # noqa: B023
            size = torch.Size(shape).numel() * dtype.itemsize
            return arena[value : value + size].view(dtype).view(shape)  # noqa: B023

        for step in recipe["steps"]:
            if "segment" in step:
                bound = [at(*tensor) for tensor in step["tensors"]]
                values = step["segment"](*bound[: step["inputs"]])
                for place, value in zip(bound[step["inputs"] :], [value.clone() for value in values], strict=True):
                    place.copy_(value)
                continue
            module, kernel = step["kernel"]
            arguments = {
                key: at(*value) if key in step["tensors"] else value for key, value in step["arguments"].items()
            } | ({"EARLY": False} if "EARLY" in step["arguments"] else {})
            if "PAIRED" in arguments:
                arguments["PAIRED"] = False
            getattr(importlib.import_module(module), kernel)[step["grid"]](**arguments)
        results.append(outputs)
    torch.save({"results": results, "shared": shared}, work.with_suffix(".out"))


# ---- converters --------------------------------------------------------------------------------------------

F32, BF16 = torch.float32, torch.bfloat16


def _f(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def _i(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


aten = torch.ops.aten
CONVERSIONS = [
    (aten.add.Tensor, lambda x, y: aten.add.Tensor(x, y), (_f(2, 3), _f(3, dtype=BF16))),
    (aten.sub.Tensor, lambda x: aten.sub.Tensor(x, 2.5), (_f(2, 3),)),
    (aten.mul.Tensor, lambda x, y: aten.mul.Tensor(x, y), (_f(4, 1, 3), _f(2, 1))),
    (aten.ge.Scalar, lambda x: aten.ge.Scalar(x, 1), (_i(5),)),
    (aten.cos.default, lambda x: aten.cos(x), (_f(2, 3),)),
    (aten.sin.default, lambda x: aten.sin(x), (_f(2, 3),)),
    (aten.square.default, lambda x: aten.square(x), (_f(2, 3),)),
    (aten.rsqrt.default, lambda x: aten.rsqrt(x), (_f(2, 3),)),
    (aten.mean.dim, lambda x: aten.mean.dim(x, [-1], True), (_f(2, 3),)),
    (aten.linear.default, lambda x, w, b: aten.linear(x, w, b), (_f(2, 8, dtype=BF16), _f(3, 8, dtype=BF16), _f(3, dtype=BF16))),
    (aten.linear.default, lambda x, w, b: aten.linear(x, w, b), (_f(1, 8, dtype=BF16), _f(3, 8, dtype=BF16), _f(3, dtype=BF16))),
    (aten.linear.default, lambda x, w: aten.linear(x, w), (_f(1, 8), _f(3, 8))),
    (aten.linear.default, lambda x, w: aten.linear(x, w), (_f(1, 1, 8), _f(3, 8))),
    (aten.linear.default, lambda x, w, b: aten.linear(x, w, b), (_f(8), _f(3, 8), _f(3))),
    (aten.mul.Tensor, lambda x: aten.mul.Tensor(x, 1.0037), (_f(5, dtype=BF16),)),
    (aten.embedding.default, lambda w, i: aten.embedding(w, i), (_f(9, 4, dtype=BF16), _i(3))),
    (aten.to.dtype, lambda x: aten.to.dtype(x, BF16), (_f(2, 3),)),
    (aten.view.default, lambda x: aten.view(x, [-1, 2]) + 1, (_f(2, 3),)),
    (aten._unsafe_view.default, lambda x: aten._unsafe_view(x, [3, 2]) + 1, (_f(2, 3),)),
    (aten.reshape.default, lambda x: aten.reshape(x, [6]) + 1, (_f(2, 3),)),
    (aten.flatten.using_ints, lambda x: aten.flatten(x) + 1, (_f(2, 3),)),
    (aten.unsqueeze.default, lambda x: aten.unsqueeze(x, 1) + 1, (_f(2, 3),)),
    (aten.squeeze.dim, lambda x: aten.squeeze.dim(x, -1) + 1, (_f(2, 1),)),
    (aten.alias.default, lambda x: aten.alias(x) + 1, (_f(2, 1),)),
    (aten.detach.default, lambda x: aten.detach(x) + 1, (_f(2, 1),)),
    (aten.clone.default, lambda x: aten.clone(x) + 1, (_f(2, 1),)),
    (aten.contiguous.default, lambda x: aten.contiguous(x[:, 1:]) + 1, (_f(2, 4),)),
    (aten.expand.default, lambda x: aten.expand(x, [4, 3]) + 1, (_f(1, 3),)),
    (aten.expand_as.default, lambda x, y: aten.expand_as(x, y) + y, (_f(2, 1), _f(2, 3))),
    (aten.chunk.default, lambda x: aten.chunk(x, 2, -1)[1] + 1, (_f(2, 6),)),
    (aten.split_with_sizes.default, lambda x: aten.split_with_sizes(x, [1, 3, 2], 1)[1] + 1, (_f(2, 6),)),
    (aten.cat.default, lambda x, y: aten.cat([x, y], -1), (_f(2, 3), _f(2, 1))),
    (aten.slice.Tensor, lambda x: aten.slice.Tensor(x, 1, 1, 9223372036854775807) + 1, (_f(2, 6),)),
    (aten.where.ScalarOther, lambda x, i: aten.where.ScalarOther(i >= 1, x, -1), (_i(2, 3), _i(2, 1))),
    (aten.where.self, lambda x, y, i: aten.where.self(i >= 1, x, y), (_f(2, 3), _f(3), _i(2, 1))),
    (aten.remainder.Scalar, lambda x: aten.remainder.Scalar(x, 7), (_i(5),)),
    (aten.softmax.int, lambda x: aten.softmax.int(x, -1), (_f(2, 5),)),
    (aten.sort.stable, lambda x: aten.sort.stable(x, stable=True, dim=-1, descending=True), (_f(3, 8),)),
    (aten.argmax.default, lambda x: aten.argmax(x, -1), (_f(3, 8),)),
    (aten.logsumexp.default, lambda x: aten.logsumexp(x, [-1]), (_f(3, 8),)),
    (aten.gather.default, lambda x, i: aten.gather(x, -1, i), (_f(3, 8), _i(3, 1))),
]


class _Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


def _segment_of(function, arguments):
    from gptoss_export.targets.tensorrt.partition import cut

    exported = torch.export.export(_Calls(function), arguments, strict=False)
    (segment,) = cut(exported, "test")
    return segment


def _built(target, function, arguments, on_this_gpu):
    from gptoss_export.targets.tensorrt.engine import build_segment, missing_converters
    from gptoss_export.targets.tensorrt.edition import installed

    segment = _segment_of(function, arguments)
    assert not missing_converters(segment)
    if target not in {node.target for node in segment.nodes}:
        pytest.skip("torch traces another op for it")
    return segment, build_segment(segment, installed(), ARCH, on_this_gpu)


def _name(value):
    return str(value) if isinstance(value, torch._ops.OpOverload) else None


@pytest.mark.parametrize(("target", "function", "arguments"), CONVERSIONS, ids=_name)
def test_converter(target, function, arguments):
    """Builds for a GPU, with the shapes and dtypes of torch, which the build compares at every node."""
    assert len(_built(target, function, arguments, on_this_gpu=False)[1]) > 1000


def drawn(function, arguments):
    """Arguments of those shapes, of few different values, and what torch makes of them, as a list."""
    generator = torch.Generator().manual_seed(0)
    given = [
        (torch.randint(1, 5, item.shape, generator=generator) / 2).to(item.dtype) if item.is_floating_point()
        else torch.randint(0, 3, item.shape, generator=generator) for item in arguments
    ]  # fmt: skip
    wanted = function(*given)
    wanted = list(wanted) if isinstance(wanted, tuple | list) else [wanted]
    return given, wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here")
@pytest.mark.parametrize(("target", "function", "arguments"), CONVERSIONS, ids=_name)
def test_converter_on_a_gpu(target, function, arguments, tmp_path):
    """Computes what torch computes; few different values, so that sort and argmax meet equals."""
    from gptoss_export.targets.tensorrt.contexts import Contexts
    from gptoss_export.targets.tensorrt.edition import installed

    segment, engine = _built(target, function, arguments, on_this_gpu=True)
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "one.engine").write_bytes(engine)
    device = torch.device("cuda")
    given, wanted = drawn(function, arguments)
    contexts = Contexts(installed(), tmp_path, ["one"], device)  # holds the memory that its contexts work in
    contexts.allocate()
    context = contexts["one"]
    inputs = [given[int(node.name.removeprefix("arguments_"))].to(device) for node in segment.inputs]
    outputs = [torch.empty_like(item, device=device) for item in wanted]
    for kind, tensors in ("in", inputs), ("out", outputs):
        for index, tensor in enumerate(tensors):
            context.set_tensor_address(f"{kind}{index}", tensor.data_ptr())
    torch.cuda.synchronize()
    assert context.execute_async_v3(torch.cuda.Stream().cuda_stream)
    torch.cuda.synchronize()
    for found, want in zip(outputs, wanted, strict=True):
        assert found.dtype == want.dtype
        found_error = error(found.cpu().double(), want.double())
        assert found_error.within(TOLERANCES.get(want.dtype, Error(0.0, 0.0))), found_error


def test_every_converter_is_tested():
    from gptoss_export.targets.tensorrt.converters import CONVERTERS

    assert CONVERTERS.keys() - {operator.getitem} == {target for target, _, _ in CONVERSIONS}


def test_an_op_without_converter_is_named():
    from gptoss_export.targets.tensorrt.engine import missing_converters

    assert missing_converters(_segment_of(lambda x: torch.erf(x) + 1, (_f(2, 3),))) == ["erf: aten.erf.default"]


def test_what_a_converter_cannot_is_named():
    from gptoss_export.targets.tensorrt.engine import build_segment
    from gptoss_export.targets.tensorrt.edition import installed

    segment = _segment_of(lambda x: aten.sort.stable(x, stable=True, dim=-1, descending=False), (_f(3, 8),))
    with pytest.raises(BuildError, match=r"sort.*only rows, descending"):
        build_segment(segment, installed(), ARCH, on_this_gpu=False)


# ---- plugins -----------------------------------------------------------------------------------------------


def plugins_of_the_model(arch: str):
    """Of every launch of decode and prefill."""
    from gptoss_export.targets.tensorrt.partition import Launch, cut
    from gptoss_export.targets.tensorrt.memory_plan import program_inputs

    maker = plugin_parts()[0](arch)
    for _, program in lowered(arch=arch):
        held = set(program_inputs(program.exported))
        for step in cut(program.exported, program.name):
            if isinstance(step, Launch):
                values = {name: node.meta["val"] for name, node in step.tensors.items()}
                names = {name for name, node in step.tensors.items() if node in held}
                plugin = maker.make(step.kernel, {**step.arguments, **values}, step.grid, names)
                held |= {step.tensors[name] for name in plugin.outputs}
                yield plugin
            else:
                held |= set(step.outputs)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_120"])
def test_plugins_of_the_model(arch):
    """They compile, and say truly what they take and write."""
    written: dict[str, set[str]] = {}
    in_place = set()
    for plugin in plugins_of_the_model(arch):
        (entry,) = re.findall(r"\.visible \.entry \w+\((.*?)\)", plugin.ptx, re.S)
        assert entry.count(".param") == len(plugin.inputs) + len(plugin.outputs)
        assert set(plugin.tensors) == {*plugin.inputs, *plugin.outputs}
        assert f".target {arch}" in plugin.ptx and plugin.cubin.startswith(b"\x7fELF")
        assert ("griddepcontrol" in plugin.ptx) == (arch in ("sm_90", "sm_120") and plugin.function.endswith("_pdl"))
        written.setdefault(plugin.function, set()).update(plugin.outputs)
        in_place |= {*plugin.inputs} & {*plugin.outputs}
    assert in_place == {"k_cache", "v_cache"}
    assert written == {
        "_write_kv": {"k_cache", "v_cache"},
        "_attend_pdl": {"out", "part_sum", "part_peak", "part_total"},
        "_combine_pdl": {"out"},
        "_arrange": {"arranged", "undo"},
        "_gate_up_pdl": {"act"},
        "_down_pdl": {"out"},
        "_count_pairs": {"counts"},
        "_place_pairs": {"expert_of_block", "pair_of_slot"},
        "_gate_up_many": {"act"},
        "_down_many": {"out"},
        "_sum_choices": {"sums"},
    }


def test_a_whole_program_as_one_network():
    """What the full TensorRT is given, but for its plugins, for which constants of their results' shapes stand here."""
    from gptoss_export.targets.tensorrt.converters import Layers
    from gptoss_export.targets.tensorrt.partition import Launch, cut
    from gptoss_export.targets.tensorrt.engine import build_whole
    from gptoss_export.targets.tensorrt.edition import installed
    from gptoss_export.targets.tensorrt.memory_plan import program_inputs, results

    flavour = installed()
    _, program = next(iter(lowered()))
    steps = cut(program.exported, program.name)
    launches = [step for step in steps if isinstance(step, Launch)]
    made = dict(zip((step.name for step in launches), plugins_of_the_model(ARCH), strict=False))
    kept, order = [], []

    def add_plugin(trt, network, plugin, inputs):
        assert [tuple(tensor.shape) for tensor in inputs] == [plugin.tensors[name][1] for name in plugin.inputs]
        layers = Layers(trt, network)
        kept.append(layers)
        order.append(plugin.function)
        return [layers.zeros(torch.int8 if dtype == torch.uint8 else dtype, shape)
                for dtype, shape in (plugin.tensors[name] for name in plugin.outputs)]  # fmt: skip

    inputs, outputs = program_inputs(program.exported), results(program.exported)
    engine, used = build_whole(inputs, outputs, steps, made, add_plugin, flavour, ARCH, False)
    assert len(engine) > 1000 and set(used) == set(inputs)
    assert order == [made[step.name].function for step in launches]


# ---- the artifact ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engines(checkpoints, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("tensorrt") / "artifact"
    build(checkpoints["hf"], output, BuildOptions("tensorrt", "cuda", arch=ARCH, max_batch=2, max_context=600, prefill_chunks=(16,)))
    return output


def test_artifact(engines, cli):
    manifest = load_manifest(engines)
    assert (manifest.target, manifest.arch) == ("tensorrt", ARCH)
    assert manifest.versions["tensorrt_rtx"].startswith("1.")
    code, out, err = cli("inspect", engines, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["programs"].keys() == manifest.programs.keys() and facts["files"].keys() == manifest.files.keys()
    told = facts["tables"]
    assert {row["program"] for row in told["steps"]} == manifest.programs.keys()
    assert len(told["engine segments"]) == 4 + 4 + 1 + 1
    for row in told["engine segments"]:
        assert f"engines/{row['engine']}.engine" in manifest.files
    for row in told["plugins"]:
        assert {f"plugins/{row['kernel']}{kind}" for kind in (".ptx", ".cubin")} <= manifest.files.keys()
    code, out, _ = cli("inspect", engines)
    assert code == 0 and "engine segments" in out and "plugins" in out


def test_builds_are_alike(engines, checkpoints, tmp_path):
    """The schedule and the kernels; TensorRT puts its own marks into engines."""
    again = tmp_path / "again"
    build(checkpoints["hf"], again, BuildOptions("tensorrt", "cuda", arch=ARCH, max_batch=2, max_context=600, prefill_chunks=(16,)))
    assert (again / "schedule.json").read_text() == (engines / "schedule.json").read_text()
    for path in (engines / "plugins").iterdir():
        assert (again / "plugins" / path.name).read_bytes() == path.read_bytes()


def test_refused_before_an_engine_is_touched(engines):
    manifest, target = load_manifest(engines), TARGETS["tensorrt"]
    for path in (engines / "engines").iterdir():
        assert path.stat().st_size > 0

    def problems(**changes):
        return "\n".join(target.problems(dataclasses.replace(manifest, **changes), Path("nowhere")))

    versions = manifest.versions
    assert "artifact built with 1.7.1" in problems(versions=versions | {"tensorrt_rtx": "1.7.1"})
    full = {name: version for name, version in versions.items() if name != "tensorrt_rtx"}
    assert "tensorrt: artifact built with 11.4" in problems(versions=full | {"tensorrt": "11.4"})
    assert "names no TensorRT" in problems(versions=full)
    assert ARCH in problems()  # no such GPU here, or none at all


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(engines, cli, checkpoints, tmp_path):
    code, _, err = cli("run", engines, "--tokens", "1,2,3")
    assert code == 2 and "artifact is for a CUDA GPU (sm_89), torch finds none here" in err
    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "tensorrt", "--device", "cuda", "--arch", "sm_90")
    assert code == 2 and "--arch sm_90: tensorrt compiles here for sm_80, sm_86, sm_89, sm_120" in err
    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "tensorrt", "--device", "cuda")
    assert code == 2 and "--arch: this machine has no cuda device to build for; choose one of sm_80" in err
    assert not (tmp_path / "a").exists()


def test_a_broken_schedule_is_refused(engines, tmp_path):
    """By whatever reads it; what else may be wrong with one is in test_tensorrt_checks.py."""
    manifest, target = load_manifest(engines), TARGETS["tensorrt"]
    data = json.loads((engines / "schedule.json").read_text())
    data["programs"]["decode"]["steps"][0]["engine"] = "ghost"
    (tmp_path / "schedule.json").write_text(json.dumps(data))
    assert "unknown engine 'ghost'" in "\n".join(target.problems(manifest, tmp_path))
    with pytest.raises(ArtifactError, match="unknown engine 'ghost'"):
        target.tables(manifest, tmp_path)
    for kind in "schedule.json", ".engine", ".cubin":
        left = {name: spec for name, spec in manifest.files.items() if not name.endswith(kind)}
        (gone, *_) = manifest.files.keys() - left.keys()
        fewer = dataclasses.replace(manifest, files=left)
        assert f"{gone}: not among the manifest's files" in "\n".join(target.problems(fewer, engines))
        with pytest.raises(ArtifactError, match=f"{re.escape(gone)}: not among the manifest's files"):
            target.tables(fewer, engines)


def test_lifted_constants_are_refused(tmp_path):
    """Tracing makes an input of a tensor made of numbers, which nobody would bind."""
    from gptoss_export.targets.tensorrt.build import build_programs
    from gptoss_export.targets.tensorrt.edition import installed

    program, _ = next(iter(lowered()))
    exported = torch.export.export(_Calls(lambda x: x + torch.tensor([1.0, 2.0])), (_f(3, 2),), strict=False)
    lifted = dataclasses.replace(program, exported=exported, inputs=program.inputs[:1])
    with pytest.raises(LoweringError, match="the graph has 2 inputs, the call 1: .*lifted_tensor"):
        build_programs([lifted], installed(), ARCH, False, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here")
def test_on_a_gpu(checkpoints, cli, tmp_path):
    """Built for the GPU at hand: as transformers has it, and running where Triton cannot be imported."""
    from test_artifact import BLOCKED

    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "tensorrt", "--device", "cuda",
                       "--max-batch", 3, "--max-context", 4400, "--prefill-chunk", 16, "--prefill-chunk", 64)  # fmt: skip
    assert code == 0, err
    code, out, err = cli("verify", tmp_path / "a", "--checkpoint", checkpoints["hf"], "--json")
    assert code == 0, out + err
    done = subprocess.run([sys.executable, "-c", BLOCKED, tmp_path / "a"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("parameters", "body", "message"),
    [
        (["f_param_0", "f_param_1", "f_param_2"], "ld.param.b64 %rd1, [f_param_2];", "reads its scratch pointer f_param_2"),
        (["f_param_0", "f_param_1"], "ret;", "PTX has 2 parameters, expected 1 and 2 for scratch"),
    ],
)
def test_a_kernel_that_cannot_be_a_plugin(parameters, body, message):
    from gptoss_plugins.plugin import _with_parameters

    listed = ",\n".join(f"\t.param .u64 .ptr .global .align 1 {name}" for name in parameters)
    ptx = f".visible .entry f(\n{listed}\n)\n{{\n{body}\n}}\n"
    with pytest.raises(ValueError, match=message):
        _with_parameters(ptx, "f", ["x"], ["x"], [])


if __name__ == "__main__":
    _emulate(Path(sys.argv[1]))

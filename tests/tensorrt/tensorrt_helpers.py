"""The tiny model's programs as the TensorRT target lowers them, segments of single functions, the model's plugins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gptoss_export.artifact.programs import Sizes, model_programs
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compiler.export import TracedProgram, trace
from gptoss_export.compiler.lower import lower
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.targets.base_compiler import compiler
from gptoss_export.targets.tensorrt.memory_plan import program_inputs
from gptoss_export.targets.tensorrt.partition import Launch, Segment, fixed_shape, partition
from gptoss_export.targets.tensorrt.plugins import Plugin, plugin_support

ARCH = "sm_89"
# Long enough for shares of the context, and chunks for both kinds of grouped products.
SIZES = Sizes(widths=(1, 2), max_context=600, prefill_chunks=(16, 272))
LAYERS = PRESETS["tiny"].num_hidden_layers

# What each kernel of the tiny model writes.
WRITTEN = {
    "_write_kv": {"k_cache", "v_cache"},
    "_attend_pdl": {"out", "part_sum", "part_peak", "part_total"},
    "_combine_pdl": {"out"},
    "_arrange": {"arranged", "undo"},
    "_gate_up_pdl": {"act"},
    "_down_pdl": {"out"},
    "_count_pairs": {"counts"},
    "_place_pairs": {"expert_of_block", "pair_of_row"},
    "_arrange_words": {"arranged"},
    "gate_up_many_pdl": {"act"},
    "down_many_pdl": {"out"},
    "sum_many_pdl": {"sums"},
}


def lowered(
    dtype: torch.dtype = torch.bfloat16, layers: int = LAYERS, arch: str = ARCH
) -> Iterator[tuple[TracedProgram, TracedProgram]]:
    """The tiny model's programs: as traced, and as the target lowers them."""
    kinds = PRESETS["tiny"].layer_types[:layers]
    model = dataclasses.replace(PRESETS["tiny"], num_hidden_layers=layers, layer_types=kinds)
    implementations = compiler("tensorrt").implementations("cuda", ConfigChooser(arch))
    for program in model_programs(SIZES):
        traced = trace(program, model, SIZES, dtype, torch.device("cpu"))
        yield traced, lower(traced, implementations)


class FunctionModule(nn.Module):
    """A function as a module, which torch.export takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: torch.Tensor) -> Any:
        return self.function(*arguments)


def exported_function(function: Callable[..., Any], arguments: Sequence[torch.Tensor]) -> torch.export.ExportedProgram:
    return torch.export.export(FunctionModule(function), tuple(arguments), strict=False)


def segment_of(function: Callable[..., Any], arguments: Sequence[torch.Tensor]) -> Segment:
    """The one segment of a function's graph. The inputs are called arguments_0, arguments_1, ..."""
    (segment,) = partition(exported_function(function, arguments), "test")
    assert isinstance(segment, Segment)
    return segment


def plugins_of_the_model(arch: str) -> Iterator[Plugin]:
    """The plugin of every launch of the tiny model's programs, in order."""
    maker = plugin_support().maker(arch)
    for _, program in lowered(arch=arch):
        written = set(program_inputs(program.exported))
        for part in partition(program.exported, program.name):
            if isinstance(part, Launch):
                values = {
                    name: torch.empty(fixed_shape(node), dtype=node.meta["val"].dtype, device="meta")
                    for name, node in part.tensors.items()
                }
                before = {name for name, node in part.tensors.items() if node in written}
                plugin = maker.make(part.kernel, {**part.arguments, **values}, part.grid, before)
                written |= {part.tensors[name] for name in plugin.outputs}
                yield plugin
            else:
                written |= set(part.outputs)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def integers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)

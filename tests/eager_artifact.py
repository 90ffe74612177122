"""An artifact whose programs are the decoder in eager PyTorch: it is made in a second, and can be wrong at will.

The runner and its executor are those of a compiled artifact, with the same caches, chunks and slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from reference_runner import write_artifact

from gptoss_export import Runner
from gptoss_export.artifact.calls import Role
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.artifact.programs import Decode, Prefill, Program, Sizes, model_programs, page_table_names
from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.compiler.export import build_model
from gptoss_export.model.decoder import GptOss, yarn_inv_freq
from gptoss_export.model.dtypes import torch_dtype
from gptoss_export.model.parameters import INV_FREQ
from gptoss_export.runtime.adapter_memory import AdapterMemory
from gptoss_export.runtime.page_memory import allocate_pages
from gptoss_export.runtime.program_executor import ProgramExecutor
from gptoss_export.runtime.tensors import LoadedProgram
from gptoss_export.runtime.with_torch.choices import IN_TORCH
from gptoss_export.runtime.with_torch.tensors import TorchTensors

Fault = Callable[[Any], None]  # changes a model
Where = Callable[[Program, int], bool]  # a program and its first slot: is the fault in it?


def everywhere(program: Program, slot: int) -> bool:
    return True


def read_model(checkpoint: Path, dtype: torch.dtype, experts: str | None = None) -> GptOss:
    """The decoder with the checkpoint's weights, on the CPU."""
    opened = open_checkpoint(checkpoint, experts=experts)
    model = build_model(opened.config, dtype).to_empty(device=torch.device("cpu"))
    parameters = dict(model.named_parameters())
    for _, group in opened.converted_groups():
        for name, value in group.items():
            parameters[name].data.copy_(value)
    parameters[INV_FREQ].data.copy_(yarn_inv_freq(opened.config.rope, opened.config.head_dim))
    return model


def write_eager(folder: Path, checkpoint: Path, sizes: Sizes, dtype: str, experts: str | None = None) -> Path:
    """The folder of an artifact: its manifest, with the programs' signatures."""
    return write_artifact(folder, checkpoint, sizes, dtype, True, experts)


def load_eager(
    folder: Path,
    checkpoint: Path,
    fault: Fault | None = None,
    where: Where = everywhere,
    kv_memory: int | None = None,
) -> Runner:
    """The runner of the artifact. Programs that `where` names run a model with the fault."""
    manifest = load_manifest(folder)
    given = checkpoint, torch_dtype(manifest.dtype), manifest.model.expert_format.option
    right = read_model(*given)
    wrong = right
    if fault is not None:
        wrong = read_model(*given)
        with torch.inference_mode():
            fault(wrong)

    def loaded(program: Program) -> LoadedProgram:
        signature = manifest.programs[program.name]
        kinds = page_table_names(manifest.model)

        def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            of_role: dict[Role, list[torch.Tensor]] = {role: [] for role in Role}
            for item, tensor in zip(signature.inputs, inputs, strict=True):
                of_role[item.role].append(tensor)
            given, rest = of_role[Role.DATA], of_role[Role.CACHE]
            pairs = list(zip(rest[::2], rest[1::2], strict=True))
            pages = dict(zip(kinds, of_role[Role.TABLE], strict=True)) if pairs else {}
            slot = int(given[2][0]) if pairs else 0
            factors = zip(signature.inputs_of(Role.ADAPTER), of_role[Role.ADAPTER], strict=True)
            adapters = {item.name: tensor for item, tensor in factors} or None
            model = wrong if where(program, slot) else right
            if isinstance(program, Decode):
                hidden = model.backbone(given[0][:, None], given[1][:, None], given[2], pages, pairs, adapters)
                return [*model.unembed(hidden), given[1] + (given[1] >= 0)]
            if isinstance(program, Prefill):
                tokens, positions = (tensor.view(program.segments, -1) for tensor in given[:2])
                return [model.backbone(tokens, positions, given[2], pages, pairs, adapters)]
            return list(model.unembed(given[0]))

        return run

    programs = {program.name: loaded(program) for program in model_programs(manifest.sizes)}
    weights = dict(right.named_parameters())
    tensors = TorchTensors(torch.device("cpu"))
    memory = allocate_pages(manifest, tensors, kv_memory)
    for tensor in memory.bound.values():
        tensor.fill_(0)  # a fault may read what nobody has written
    adapter_memory = AdapterMemory(manifest, tensors) if manifest.sizes.adapter_slots else None
    executor = ProgramExecutor(manifest, folder, tensors, weights, programs, memory, IN_TORCH, adapter_memory)
    return Runner(manifest, folder, executor, {})

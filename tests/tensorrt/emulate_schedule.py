"""Carries out the schedule steps of programs without TensorRT and without a GPU.

PyTorch computes the segments and Triton's interpreter runs the kernels, all on one arena and with the references that
the runner binds. The interpreter must be switched on before Triton is imported, so this is a process of its own:

    TRITON_INTERPRET=1 python emulate_schedule.py WORK.pt      writes WORK.out

WORK holds `recipes`, `inputs` (names), `shared` tensors (weights and caches, by name) and `calls` (program, data).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch


class Emulation:
    """One call of a program."""

    def __init__(self, recipe: dict[str, Any], inputs: list[torch.Tensor]) -> None:
        self._steps = recipe["steps"]
        self.outputs = [torch.empty(shape, dtype=dtype) for shape, dtype in recipe["outputs"]]
        # NaN until it is written.
        self._memory = {
            "input": inputs,
            "output": self.outputs,
            "arena": torch.full((max(recipe["arena"], 1),), 0xFF, dtype=torch.uint8),
        }

    def run(self) -> list[torch.Tensor]:
        for step in self._steps:
            if "segment" in step:
                self._run_segment(step)
            else:
                self._launch(step)
        return self.outputs

    def _tensor(self, reference: tuple[str, int], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        place, value = reference
        memory = self._memory[place]
        if isinstance(memory, list):
            return memory[value].view(shape)
        size = torch.Size(shape).numel() * dtype.itemsize
        return memory[value : value + size].view(dtype).view(shape)

    def _run_segment(self, step: dict[str, Any]) -> None:
        bound = [self._tensor(*tensor) for tensor in step["tensors"]]
        values = step["segment"](*bound[: step["inputs"]])
        copies = [value.clone() for value in values]  # a result may be a view of an input
        for output, value in zip(bound[step["inputs"] :], copies, strict=True):
            output.copy_(value)

    def _launch(self, step: dict[str, Any]) -> None:
        arguments = {
            name: self._tensor(*value) if name in step["tensors"] else value
            for name, value in step["arguments"].items()
        }
        # PTX instructions that the interpreter does not have.
        arguments |= {name: False for name in ("EARLY", "PAIRED") if name in arguments}
        module, kernel = step["kernel"]
        getattr(importlib.import_module(module), kernel)[step["grid"]](**arguments)


def main(work: Path) -> None:
    job = torch.load(work, weights_only=False)
    results = []
    for name, data in job["calls"]:
        inputs = [(data | job["shared"])[key] for key in job["inputs"][name]]
        results.append(Emulation(job["recipes"][name], inputs).run())
    torch.save({"results": results, "shared": job["shared"]}, work.with_suffix(".out"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

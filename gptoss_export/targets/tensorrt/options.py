"""The options of this target. Imports nothing heavy: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """experimental_full_tensorrt: build with the full TensorRT, whose engines hold the kernels and were never run."""

    experimental_full_tensorrt: bool = field(
        default=False,
        metadata={"help": "Build with the full TensorRT, kernels inside of engines. No such engine was ever executed."},
    )


FULL_OPTION = "--experimental-full-tensorrt"

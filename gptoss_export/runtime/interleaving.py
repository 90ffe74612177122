"""Interleaves the codes of the MXFP4 weights on a GPU, in place (model/mxfp4.py says how, and what for).

The files keep the layout of the checkpoint, so that an artifact can link to them and needs no second copy. Doing it at
each load reads and writes the weights once more, in the GPU's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..artifact.programs import Interleave
from ..model.parameters import is_mxfp4_blocks
from .tensors import Tensor, Tensors


def interleave_weights(weights: Mapping[str, Tensor], interleave: Callable[[Any], Tensor], tensors: Tensors) -> None:
    """Interleave the blocks among `weights`, which are on a GPU.

    interleave  `mxfp4.interleave_words`, or what computes the same
    """
    with tensors.working():
        for name, weight in weights.items():
            if is_mxfp4_blocks(name):
                for words in tensors.reinterpreted(weight, "int64").split(Interleave.likely_rows):
                    words.copy_(interleave(words))

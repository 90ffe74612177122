"""Interleaves the codes of the MXFP4 weights on a GPU, in place (model/mxfp4.py says how, and what for).

The files keep the layout of the checkpoint, so that an artifact can link to them and needs no second copy. Doing it at
each load reads and writes the weights once more, in the GPU's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ...artifact.programs import Interleave
from ...model.parameters import is_mxfp4_blocks


def interleave_weights(weights: Mapping[str, torch.Tensor], interleave: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Interleave the blocks among `weights`, which are on a GPU.

    interleave  `mxfp4.interleave_words`, or what computes the same
    """
    with torch.inference_mode():
        for name, weight in weights.items():
            if is_mxfp4_blocks(name):
                for words in weight.view(-1).view(torch.int64).split(Interleave.likely_rows):
                    words.copy_(interleave(words))

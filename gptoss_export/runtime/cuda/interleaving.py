"""Interleaves the codes of the MXFP4 weights on a GPU, in place (model/mxfp4.py says how, and what for).

The files keep the layout of the checkpoint, so that an artifact can link to them and needs no second copy. Doing it at
each load costs the time to read and write the weights once at the speed of the GPU's memory: for a 20b 10 ms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ...model.parameters import is_mxfp4_blocks

_PIECE = 1 << 21  # 64-bit words at a time: results need memory of their own, here 16 MB


def interleave_weights(weights: Mapping[str, torch.Tensor], interleave: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Interleave the blocks among `weights`, which are on a GPU.

    interleave  `mxfp4.interleave_words`, or what computes the same
    """
    with torch.inference_mode():
        for name, weight in weights.items():
            if is_mxfp4_blocks(name):
                for words in weight.view(-1).view(torch.int64).split(_PIECE):
                    words.copy_(interleave(words))

"""Finds weights that are not finite: NaN and infinity in floats, scales of MXFP4 that mean NaN, and numbers that are
beyond the range of the dtype in which an artifact computes with them.

One such weight makes every token of a model wrong, and nothing after the build would say why. MXFP4 blocks need no
reading where the scales are small: each of their codes is a number.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..model.dtypes import dtype_name
from ..model.expert_formats import MXFP4_GROUP
from ..model.mxfp4 import NAN_SCALE, dequantize

_EXPERTS = ".mlp.experts."  # in the names of parameters whose first dimension is the expert
_SHOWN = 5  # experts that one line names
_LARGEST_SCALE = 252  # 6 times 2^(252 - 127) is a float32, and 4 times 2^(253 - 127) is none


def not_finite(where: str, parameter: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> Iterator[str]:
    """A line if a tensor of the parameter called `parameter` is not finite. `where` is what it calls the tensor.

    dtype  floats must be finite in it too. None: in their own alone
    """
    if tensor.is_floating_point():
        used = dtype or tensor.dtype
        if all(bool(torch.isfinite(bound.to(used))) for bound in torch.aminmax(tensor)):  # NaN makes both bounds NaN
            return
        wrong = ~torch.isfinite(tensor.to(used))
        largest = f"{torch.finfo(used).max:.7g}"
        expected = f"finite numbers of {dtype_name(used)}, whose largest is {largest}" if dtype else "finite numbers"
    elif parameter.endswith("_scales"):
        if int(tensor.amax()) != NAN_SCALE:
            return
        wrong = tensor == NAN_SCALE
        expected = f"scales below {NAN_SCALE}, which means NaN"
    else:
        return
    yield _line(where, parameter, tensor, wrong, expected)


def too_large(
    where: str, parameter: str, blocks: torch.Tensor, scales: torch.Tensor, largest_scale: int | None = None
) -> Iterator[str]:
    """A line if MXFP4 weights are beyond the range of float32, or have scales above `largest_scale`."""
    largest = int(scales.amax())
    if largest_scale is not None and largest_scale < largest < NAN_SCALE:
        expected = f"scales up to {largest_scale}, which the kernels of the target take"
        yield _line(where, parameter, scales, scales > largest_scale, expected)
        return
    if not _LARGEST_SCALE < largest < NAN_SCALE:
        return
    wrong = torch.zeros_like(scales, dtype=torch.bool)
    for found, codes, exponents in zip(wrong, blocks, scales, strict=True):  # an expert at a time
        found.copy_(~torch.isfinite(dequantize(codes, exponents)).unflatten(-1, (-1, MXFP4_GROUP)).all(dim=-1))
    if bool(wrong.any()):
        expected = "weights that float32 holds; 6 times a scale of 253 is none"
        yield _line(where, parameter, scales, wrong, expected)


def _line(where: str, parameter: str, tensor: torch.Tensor, wrong: torch.Tensor, expected: str) -> str:
    first = int(wrong.flatten().to(torch.uint8).argmax())
    value = tensor.flatten()[first].item()
    index = [int(part) for part in torch.unravel_index(torch.tensor(first), tensor.shape)]
    found = f"found {value} at {index}, {int(wrong.sum())} of {tensor.numel()} numbers are such"
    return f"{where}{_experts(parameter, wrong)}: {found}; expected {expected}"


def _experts(parameter: str, wrong: torch.Tensor) -> str:
    if _EXPERTS not in parameter:
        return ""
    experts = wrong.flatten(1).any(dim=1).nonzero().flatten().tolist()
    more = f" and {len(experts) - _SHOWN} more" if len(experts) > _SHOWN else ""
    return f", expert{'s' if len(experts) > 1 else ''} {', '.join(map(str, experts[:_SHOWN]))}{more}"

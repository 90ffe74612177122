"""Finds weights that are not finite: NaN and infinity in floats, scales of MXFP4 that mean NaN.

One such weight makes every token of a model wrong, and nothing after the build would say why. MXFP4 blocks need no
reading: each of their codes is a number.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..model.mxfp4 import NAN_SCALE

_EXPERTS = ".mlp.experts."  # in the names of parameters whose first dimension is the expert
_SHOWN = 5  # experts that one line names


def not_finite(where: str, parameter: str, tensor: torch.Tensor) -> Iterator[str]:
    """A line if a tensor of the parameter called `parameter` is not finite. `where` is what it calls the tensor."""
    if tensor.is_floating_point():
        if all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor)):  # NaN makes both bounds NaN
            return
        wrong = ~torch.isfinite(tensor)
    elif parameter.endswith("_scales"):
        if int(tensor.amax()) != NAN_SCALE:
            return
        wrong = tensor == NAN_SCALE
    else:
        return
    first = int(wrong.flatten().to(torch.uint8).argmax())
    value = tensor.flatten()[first].item()
    index = [int(part) for part in torch.unravel_index(torch.tensor(first), tensor.shape)]
    found = f"found {value} at {index}, {int(wrong.sum())} of {tensor.numel()} numbers are such"
    expected = f"scales below {NAN_SCALE}, which means NaN" if value == NAN_SCALE else "finite numbers"
    yield f"{where}{_experts(parameter, wrong)}: {found}; expected {expected}"


def _experts(parameter: str, wrong: torch.Tensor) -> str:
    if _EXPERTS not in parameter:
        return ""
    experts = wrong.flatten(1).any(dim=1).nonzero().flatten().tolist()
    more = f" and {len(experts) - _SHOWN} more" if len(experts) > _SHOWN else ""
    return f", expert{'s' if len(experts) > 1 else ''} {', '.join(map(str, experts[:_SHOWN]))}{more}"

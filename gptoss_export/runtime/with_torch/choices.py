"""The choice of the next token by torch's operators, for targets that do not compile it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...model.choice import choose_adjusted, choose_drawn, choose_limited
from ...model.sampling_state import Choice
from ..choosing import ChoiceProgram, StepOutput

IN_TORCH: Mapping[Choice, ChoiceProgram] = {
    Choice.DRAWN: lambda inputs: choose_drawn(*map(torch.as_tensor, inputs)),
    Choice.LIMITED: lambda inputs: choose_limited(*map(torch.as_tensor, inputs)),
    Choice.ADJUSTED: lambda inputs: choose_adjusted(*map(torch.as_tensor, inputs)),
}


def output_of(logits: torch.Tensor) -> StepOutput:
    """What a step knows of logits [B, V] of any float dtype."""
    logits = logits.float()
    best, top = logits.max(dim=-1)
    log_total = (logits - best[:, None]).exp().sum(dim=-1).log() + best
    return StepOutput(logits, top, best - log_total, log_total)

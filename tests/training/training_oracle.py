"""Losses and gradients of transformers with PEFT's LoRA, by autograd, for tests of the training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.model.adapter_factors import ATTENTION, EXPERTS
from gptoss_export.model.training.lora import IGNORED, Training, factors
from gptoss_export.model.training.peft import from_peft, peft_name, to_peft

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]  # the tokens and the targets of each sequence


class PeftModel:
    """transformers' model of a checkpoint with PEFT's factors, all of them random.

    experts  the format of the experts' weights, as `build --experts`
    """

    def __init__(
        self, checkpoint: Path, training: Training, dtype: torch.dtype = torch.float32, experts: str | None = None
    ) -> None:
        self._training = training
        opened = open_checkpoint(checkpoint, None, experts)
        model = opened.transformers_model(dtype, torch.device("cpu"))
        torch.manual_seed(3)
        settings = LoraConfig(
            r=training.rank,
            lora_alpha=training.alpha,
            target_modules=[name for name in ATTENTION if name in training.targets],
            target_parameters=[f"mlp.experts.{name}" for name in EXPERTS if name in training.targets],
            init_lora_weights=False,
        )
        self.wrapped = get_peft_model(model, settings, autocast_adapter_dtype=False)
        self._named = named = {name.replace(".default", ""): value for name, value in self.wrapped.named_parameters()}
        self.factors = {
            item.name: (named[peft_name(item.name, training)], item.shape) for item in factors(opened.config, training)
        }
        for value, _ in self.factors.values():
            value.requires_grad_()
            value.data.mul_(0.3)  # PEFT's random B is as large as A: the deltas would be larger than the weights

    def values(self) -> dict[str, torch.Tensor]:
        """The factors, in the shapes of a training step, float32."""
        return {name: from_peft(value.data.float(), shape) for name, (value, shape) in self.factors.items()}

    def take(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set the factors."""
        for name, stored in to_peft(values, self._training).items():
            self._named[name].data.copy_(stored)

    def step(self, sequences: Sequences) -> tuple[float, dict[str, torch.Tensor]]:
        """The mean loss of all targets that count, and the gradients of the factors. Each sequence runs by itself."""
        self.wrapped.zero_grad()
        total = sum(sum(target != IGNORED for target in targets) for _, targets in sequences)
        loss = 0.0
        for tokens, targets in sequences:
            logits = self.wrapped(torch.tensor([list(tokens)]), use_cache=False).logits[0].float()
            part = F.cross_entropy(logits, torch.tensor(list(targets)), ignore_index=IGNORED, reduction="sum") / total
            part.backward()
            loss += float(part.detach())
        return loss, {
            name: from_peft(torch.zeros_like(value) if value.grad is None else value.grad.float(), shape)
            for name, (value, shape) in self.factors.items()
        }


def random_sequences(lengths: Sequence[int], vocabulary: int, ignored: Mapping[int, int] | None = None) -> Sequences:
    """Sequences of random tokens with the tokens that follow as targets. The last one of each has no target.

    ignored  how many targets at the beginning of a sequence do not count, by the number of the sequence
    """
    random = torch.Generator().manual_seed(sum(lengths))
    found = []
    for index, length in enumerate(lengths):
        tokens = torch.randint(0, vocabulary, (length,), generator=random).tolist()
        targets = [*tokens[1:], IGNORED]
        first = (ignored or {}).get(index, 0)
        found.append((tokens, [IGNORED] * first + targets[first:]))
    return found


def packed(sequences: Sequences, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens, targets and positions [T] of sequences in a row, padded by sequences of one token."""
    ids = [token for each, _ in sequences for token in each]
    targets = [target for _, each in sequences for target in each]
    positions = [position for each, _ in sequences for position in range(len(each))]
    padding = tokens - len(ids)
    rows = ids + [0] * padding, targets + [IGNORED] * padding, positions + [0] * padding
    ids_row, targets_row, positions_row = (torch.tensor(row) for row in rows)
    return ids_row, targets_row, positions_row

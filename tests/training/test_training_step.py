"""The graph of a training step against transformers and PEFT with autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_oracle import PeftModel, packed, random_sequences

from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.compiler.export import build_model
from gptoss_export.model.decoder import yarn_inv_freq
from gptoss_export.model.parameters import INV_FREQ
from gptoss_export.model.training.lora import ATTENTION, TARGETS, Training
from gptoss_export.model.training.step import TrainingStep
from gptoss_export.verification.metric import TOLERANCES, deviation

LENGTHS = (70, 1, 45)  # past the window of 32, and a sequence of one token


def step_of(
    checkpoint: Path, training: Training, dtype: torch.dtype = torch.float32, experts: str | None = None
) -> TrainingStep:
    """The step with the weights of a checkpoint."""
    opened = open_checkpoint(checkpoint, None, experts)
    model = build_model(opened.config, dtype).to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    for name in opened.parameters():
        parameters[name].data.copy_(opened.parameter(name))
    parameters[INV_FREQ].data.copy_(yarn_inv_freq(opened.config.rope, opened.config.head_dim))
    return TrainingStep(model, opened.config, training)


@pytest.mark.parametrize(
    ("layout", "experts", "targets", "recompute"),
    [
        ("hf", None, TARGETS, False),
        ("hf", None, TARGETS, True),
        ("hf", None, ATTENTION[::3], False),
        ("hf", None, ("v_proj", "down_proj"), False),
        ("hf-separate-nf4", None, TARGETS, False),
        ("hf-bf16", "bf16", TARGETS, False),
    ],
    ids=["all", "recompute", "q and o", "v and down", "nf4", "bf16 experts"],
)
def test_loss_and_gradients_are_those_of_transformers(
    checkpoints: dict[str, Path], layout: str, experts: str | None, targets: tuple[str, ...], recompute: bool
) -> None:
    training = Training(128, 3, 6.0, targets, recompute)
    oracle = PeftModel(checkpoints[layout], training, experts=experts)
    sequences = random_sequences(LENGTHS, 512, ignored={0: 20})
    expected, gradients = oracle.step(sequences)
    with torch.no_grad():
        loss, *got = step_of(checkpoints[layout], training, experts=experts)(*packed(sequences, 128), oracle.values())
    assert abs(float(loss) - expected) < 1e-4
    assert len(got) == len(gradients)
    for have, (name, want) in zip(got, gradients.items(), strict=True):
        assert float(want.abs().max()) > 0, name
        assert deviation(have, want).within(TOLERANCES[torch.float32]), (name, deviation(have, want))

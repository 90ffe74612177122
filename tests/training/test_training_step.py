"""The graph of a training step against transformers and PEFT with autograd."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from training_oracle import PeftModel, packed, random_sequences

from artifacts import SEED
from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers, write_synthetic
from gptoss_export.compiler.export import build_model
from gptoss_export.model.adapter_factors import ATTENTION
from gptoss_export.model.decoder import yarn_inv_freq
from gptoss_export.model.parameters import INV_FREQ
from gptoss_export.model.training.lora import TARGETS, Training
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


def test_odd_shapes(tmp_path: Path) -> None:
    """Five experts of which a token has two, three heads a key head, a vocabulary that no tile divides, and a row of
    several windows and more than one run of queries."""
    config = dataclasses.replace(
        with_layers(PRESETS["tiny"], 2),
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=517,
        num_local_experts=5,
        num_experts_per_tok=2,
    )
    write_synthetic(tmp_path / "odd", config, LAYOUTS["hf"], SEED, torch.device("cpu"))
    training = Training(301, 5, 5.0, TARGETS)
    oracle = PeftModel(tmp_path / "odd", training)
    sequences = random_sequences((270, 17), 517)
    expected, gradients = oracle.step(sequences)
    with torch.no_grad():
        loss, *got = step_of(tmp_path / "odd", training)(*packed(sequences, 301), oracle.values())
    assert abs(float(loss) - expected) < 1e-4
    for have, (name, want) in zip(got, gradients.items(), strict=True):
        assert deviation(have, want).within(TOLERANCES[torch.float32]), (name, deviation(have, want))


def test_bfloat16_is_no_worse_than_transformers(checkpoints: dict[str, Path]) -> None:
    """The errors of each gradient against float32, beside those of transformers in bfloat16 with the same factors."""
    training = Training(128, 4, 8.0, TARGETS)
    exact = PeftModel(checkpoints["hf"], training)
    values = {name: value.to(torch.bfloat16).float() for name, value in exact.values().items()}
    theirs = PeftModel(checkpoints["hf"], training, torch.bfloat16)
    sequences = random_sequences(LENGTHS, 512, ignored={0: 20})
    for model in exact, theirs:
        model.take(values)
    _, expected = exact.step(sequences)
    _, of_theirs = theirs.step(sequences)
    with torch.no_grad():
        _, *got = step_of(checkpoints["hf"], training, torch.bfloat16)(*packed(sequences, 128), values)
    for have, (name, want) in zip(got, expected.items(), strict=True):
        bound = deviation(of_theirs[name], want).times(1.25)
        assert deviation(have, want).rms <= bound.rms, (name, deviation(have, want), bound)


def test_padding_and_other_sequences_change_no_gradient(checkpoints: dict[str, Path]) -> None:
    """What tokens padding has, and what stands in another sequence whose targets do not count."""
    training = Training(128, 2, 4.0, TARGETS)
    step = step_of(checkpoints["hf"], training)
    values = PeftModel(checkpoints["hf"], training).values()
    ((tokens, targets),) = random_sequences((60,), 512)
    found = []
    for fill in 0, 400:
        row = packed([(tokens, targets), ([fill] * 40, [-100] * 40)], 128)
        row[0][100:] = fill
        with torch.no_grad():
            found.append(step(*row, values))
    for first, second in zip(*found, strict=True):
        assert deviation(first, second).within(TOLERANCES[torch.float32])

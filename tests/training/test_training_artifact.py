"""The artifact of a training step: gradients, losses and adapters are those of transformers with PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel as Peft
from safetensors.torch import load_file, save_file
from training_oracle import PeftModel, random_sequences

from gptoss_export import TrainStep, load, load_train_step
from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.errors import ArtifactError, RunError, UsageError
from gptoss_export.verification.metric import TOLERANCES, deviation

CLOSE = TOLERANCES[torch.float32]


@pytest.fixture(scope="module")
def step(trained: Path) -> TrainStep:
    return load_train_step(trained / "artifact")


@pytest.fixture(scope="module")
def oracle(trained: Path, step: TrainStep) -> PeftModel:
    return PeftModel(trained / "checkpoint", step.training)


def take(step: TrainStep, values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        step.factors[name].data.copy_(value)
        step.factors[name].grad = None


def test_gradients_are_those_of_transformers_and_add_up(step: TrainStep, oracle: PeftModel) -> None:
    take(step, oracle.values())
    sequences = random_sequences((50, 1, 40), 512, ignored={0: 10})
    loss, gradients = oracle.step(sequences)
    batch = step.pack([tokens for tokens, _ in sequences], [targets for _, targets in sequences])
    for times in 1, 2:
        assert abs(float(step(batch)) - loss) < 1e-4
        for name, gradient in gradients.items():
            found = step.factors[name].grad
            assert found is not None and deviation(found, times * gradient).within(CLOSE), name


def test_losses_of_twenty_steps(step: TrainStep, trained: Path) -> None:
    """Both are trained by the same optimizer, from the values that a training begins with."""
    begun = load_train_step(trained / "artifact", seed=5)
    theirs = PeftModel(trained / "checkpoint", step.training)
    theirs.take({name: value.detach() for name, value in begun.factors.items()})
    ours_optimizer = torch.optim.AdamW(begun.parameters(), lr=5e-3)
    theirs_optimizer = torch.optim.AdamW([value for value, _ in theirs.factors.values()], lr=5e-3)
    sequences = random_sequences((60, 36), 512)
    batch = begun.pack([tokens for tokens, _ in sequences])
    losses = []
    for _ in range(20):
        expected, _ = theirs.step(sequences)
        losses.append(float(begun(batch)))
        assert abs(losses[-1] - expected) < 0.002, (len(losses), losses[-1], expected)
        ours_optimizer.step()
        theirs_optimizer.step()
        ours_optimizer.zero_grad()
    assert losses[-1] < losses[0] - 1


def test_the_adapter_is_read_by_peft_and_by_a_build(
    step: TrainStep, oracle: PeftModel, trained: Path, tmp_path: Path
) -> None:
    take(step, oracle.values())
    step.save_adapter(tmp_path / "adapter")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        expected = oracle.wrapped(tokens, use_cache=False).logits
        plain = open_checkpoint(trained / "checkpoint").transformers_model(torch.float32, torch.device("cpu"))
        reread = Peft.from_pretrained(plain, tmp_path / "adapter")
        assert torch.equal(reread(tokens, use_cache=False).logits, expected)
        opened = open_checkpoint(trained / "checkpoint", tmp_path / "adapter", "bf16")
        merged = opened.transformers_model(torch.float32, torch.device("cpu"))
        close = deviation(merged(tokens, use_cache=False).logits, expected)
        assert close.within(TOLERANCES[torch.bfloat16].times(3))  # the merged weights are rounded to bfloat16
    other = load_train_step(trained / "artifact", seed=1)
    other.load_adapter(tmp_path / "adapter")
    assert all(torch.equal(other.factors[name], value) for name, value in step.factors.items())
    with pytest.raises(UsageError, match="exists already"):
        step.save_adapter(tmp_path / "adapter")


def test_an_adapter_that_does_not_fit(step: TrainStep, tmp_path: Path) -> None:
    step.save_adapter(tmp_path / "adapter")
    config, weights = tmp_path / "adapter/adapter_config.json", tmp_path / "adapter/adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 3}))
    tensors = load_file(weights)
    first, second, *_ = sorted(tensors)
    tensors["other"] = tensors.pop(first)
    tensors[second] = torch.zeros(3, 3)
    save_file(tensors, weights)
    with pytest.raises(ArtifactError) as caught:
        step.load_adapter(tmp_path / "adapter")
    for line in (
        "adapter_config.json: lora_alpha is 3, expected 8.0 as in the artifact",
        f"{first}: missing",
        "other: the artifact trains no such factor",
        f"{second}: found [3, 3], expected [",
    ):
        assert line in str(caught.value)


def test_the_first_factors_change_nothing(step: TrainStep, trained: Path) -> None:
    """B is zero: the loss is that of the model alone, whatever A was drawn."""
    sequences = random_sequences((96,), 512)
    losses = set()
    for seed in 0, 1:
        fresh = load_train_step(trained / "artifact", seed=seed)
        losses.add(float(fresh(fresh.pack([tokens for tokens, _ in sequences]))))
    assert len(losses) == 1
    model = open_checkpoint(trained / "checkpoint").transformers_model(torch.float32, torch.device("cpu"))
    tokens = torch.tensor([sequences[0][0]])
    with torch.no_grad():
        assert abs(float(model(tokens, labels=tokens, use_cache=False).loss) - losses.pop()) < 1e-4


@pytest.mark.parametrize(
    ("sequences", "targets", "problems"),
    [
        ([[1] * 60, [2] * 37], None, ["2 sequences have 97 tokens, expected at most 96, those of a step"]),
        ([[1, 2], []], None, ["sequence 1: has no tokens"]),
        ([[1], [2]], None, ["no target counts"]),
        ([[1, 2]], [[3]], ["sequence 0: has 1 targets, expected 2"]),
        ([[1, 2]], [[512, -1]], ["sequence 0: target 512, expected 0 to 511 or -100"]),
        ([[1, 2]], [], ["found targets of 0 sequences, expected 1"]),
        ([[1, 600]], None, ["token 600: expected ids of 0 to 511"]),
        ([[1, 2.5]], None, ["tokens: expected whole numbers, found 2.5"]),
        (7, None, ["sequences: found 7, expected a sequence of sequences of tokens"]),
    ],
)
def test_batches_that_cannot_be(step: TrainStep, sequences: object, targets: object, problems: list[str]) -> None:
    with pytest.raises(RunError) as caught:
        step.pack(sequences, targets)
    assert all(problem in str(caught.value) for problem in problems), caught.value


def test_a_batch_of_another_artifact(step: TrainStep) -> None:
    batch = step.pack([[1, 2, 3]])
    wrong = type(batch)(batch.tokens[:-1], batch.targets, batch.positions)
    with pytest.raises(RunError, match=r"tokens: found torch.int64 \[95\], expected int64 \[96\]; use pack"):
        step(wrong)


def test_each_kind_of_artifact_says_how_it_is_loaded(trained: Path, uncompiled: Path) -> None:
    with pytest.raises(ArtifactError, match="is a training step and does not generate"):
        load(trained / "artifact")
    with pytest.raises(ArtifactError, match="generates and has no training step; build one with --program train-step"):
        load_train_step(uncompiled)

"""`verify` fails artifacts that compute another model, and passes right ones of many seeds.

An artifact is the decoder run eagerly in the artifact's dtype. A wrong one has one fault that a compiler, a kernel or
a checkpoint reader could have. The oracle is transformers on the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_runner import ReferenceRunner, unchanged, write_artifact

from artifacts import TWO_LAYERS
from gptoss_export.artifact.programs import Sizes
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, write_synthetic
from gptoss_export.model.config import ModelConfig, read_config
from gptoss_export.verification import verify as module
from gptoss_export.verification.cases import DECODED
from gptoss_export.verification.oracles import open_oracle
from gptoss_export.verification.report import Report

SIZES = Sizes(2, 256, (64,))
LENGTHS = [1, 33, 150]  # 32 positions are the window
Fault = Callable[[Any], None]


def layers(model: Any) -> Iterator[Any]:
    yield from model.model.layers


def change_window(by: int) -> Fault:
    def change(model: Any) -> None:
        for layer in layers(model):
            layer.self_attn.window += by if layer.self_attn.window else 0

    return change


def full_attention(model: Any) -> None:
    for layer in layers(model):
        layer.self_attn.window = 0


def drop_yarn(model: Any) -> None:
    """The frequencies of plain RoPE."""
    rotary = model.model.rotary_emb
    count = rotary.inv_freq.numel()
    rotary.inv_freq.copy_(150000.0 ** -(torch.arange(count) / count))


def drop_concentration(model: Any) -> None:
    model.model.rotary_emb.concentration = 1.0


def drop_sinks(model: Any) -> None:
    for layer in layers(model):
        layer.self_attn.sinks.fill_(float("-inf"))


def swap_experts(model: Any) -> None:
    experts = model.model.layers[1].mlp.experts
    for value in (experts.gate_up_proj_blocks, experts.down_proj_blocks):
        value[[0, 1]] = value[[1, 0]].clone()


def raise_scales(model: Any) -> None:
    """Every weight of one expert is twice as large."""
    model.model.layers[0].mlp.experts.down_proj_scales[2] += 1


def fewer_choices(model: Any) -> None:
    for layer in layers(model):
        layer.mlp.choices -= 1


def zero(*path: str) -> Fault:
    """A bias of every layer is missing."""

    def change(model: Any) -> None:
        for layer in layers(model):
            value = layer
            for name in path:
                value = getattr(value, name)
            value.zero_()

    return change


def other_alpha(model: Any) -> None:
    for layer in layers(model):
        layer.mlp.alpha = 1.0


FAULTS: dict[str, Fault] = {
    "window one longer": change_window(1),
    "window one shorter": change_window(-1),
    "no window": full_attention,
    "no YaRN": drop_yarn,
    "no attention factor": drop_concentration,
    "no sinks": drop_sinks,
    "two experts swapped": swap_experts,
    "scales of an expert one higher": raise_scales,
    "one expert fewer": fewer_choices,
    "no bias of q, k and v": zero("self_attn", "qkv_proj", "bias"),
    "no bias of the output projection": zero("self_attn", "o_proj", "bias"),
    "no bias of the router": zero("mlp", "router", "bias"),
    "no bias of gate and up": zero("mlp", "experts", "gate_up_proj_bias"),
    "no bias of down": zero("mlp", "experts", "down_proj_bias"),
    "another alpha of SwiGLU": other_alpha,
}


class WrongRunner(ReferenceRunner):
    """Computes with a model that has a fault, in the artifact's dtype."""

    def __init__(self, folder: Path, checkpoint: Path, fault: Fault, dtype: torch.dtype) -> None:
        oracle: Any = open_oracle("reference", checkpoint, dtype, torch.device("cpu"))
        with torch.inference_mode():
            fault(oracle._model)

        # All prompts begin the same sequence, so one run over it has the logits of all of them.
        sequence = tuple(module._random_tokens(max(LENGTHS) + DECODED, read_config(checkpoint).vocab_size))
        everything = torch.stack(list(oracle.run(sequence, range(len(sequence))).logits.values()))

        def logits(tokens: tuple[int, ...]) -> torch.Tensor:
            assert tokens == sequence[: len(tokens)]
            return everything[: len(tokens)]

        super().__init__(folder, logits, unchanged)


def verified(folder: Path, checkpoint: Path, fault: Fault, dtype: str, patch: pytest.MonkeyPatch) -> Report:
    artifact = write_artifact(folder, checkpoint, SIZES, dtype)

    def load(folder: Path, verify_hashes: bool) -> WrongRunner:
        return WrongRunner(folder, checkpoint, fault, getattr(torch, dtype))

    patch.setattr(module, "load", load)
    return module.verify(artifact, checkpoint, lengths=LENGTHS)


def written(folder: Path, config: ModelConfig, seed: int) -> Path:
    write_synthetic(folder, config, LAYOUTS["hf"], seed, torch.device("cpu"))
    return folder


# The bounds of bfloat16 are the wider ones. So every fault is tried in bfloat16, and a few in float32.
@pytest.mark.parametrize(
    ("fault", "dtype"),
    [(fault, "bfloat16") for fault in FAULTS]
    + [(fault, "float32") for fault in ("window one longer", "no attention factor", "two experts swapped")],
)
def test_a_wrong_artifact_fails(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, dtype: str
) -> None:
    report = verified(tmp_path / "a", checkpoints["hf"], FAULTS[fault], dtype, monkeypatch)
    assert not report.passed, [(row.label, row.gated, row.bound) for row in report.rows]


@pytest.mark.parametrize("seed", range(10))
def test_a_right_artifact_in_bfloat16_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    checkpoint = written(tmp_path / "checkpoint", (PRESETS["tiny"], TWO_LAYERS)[seed % 2], seed)
    report = verified(tmp_path / "a", checkpoint, lambda model: None, "bfloat16", monkeypatch)
    assert report.passed, [(row.label, row.near_ties, row.rows, row.gated, row.bound) for row in report.rows]

"""The op calls of a model, their inputs, and what the shipped tuned configs say of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tuning_samples import OWN, entry, tuned

from gptoss_export import building
from gptoss_export.artifact.programs import Sizes
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compat.versions import distance, installed
from gptoss_export.errors import UsageError
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import shipped_tuned_configs
from gptoss_export.kernels.tuned_configs import TunedConfig, TunedConfigs
from gptoss_export.model.ops import OPS
from gptoss_export.tuning.op_calls import OpCall, op_calls

pytest.importorskip("triton")


# Kernels without tuned configs.
GUESSED = {"attention_batch", "experts_chunk", "experts_many", "experts_many_step", "unembed_batch"}
# Ops of the training step, whose program is not traced for tuning.
OF_TRAINING = {"grouped_linear", "grouped_outer", "packed_attention", "packed_attention_backward", "rotate"}


@pytest.fixture(scope="module")
def called() -> list[OpCall]:
    """The calls of a 20b, which the shipped configs were measured for."""
    return op_calls(PRESETS["20b"], Sizes((1,), 8192, (128, 2048)), torch.bfloat16, "sm_90")


def test_every_kernel_with_a_config_space_is_called(called: list[OpCall]) -> None:
    assert {call.op.name for call in called} == set(OPS) - {
        "rotary",
        "kv_write",
        "sum_ranks",
        "adapter_delta",
        "adapted_experts",
        *OF_TRAINING,
    }
    assert {call.space.name for call in called} == {
        "attention",
        "attention_batch",
        "attention_step",
        "experts_chunk",
        "experts_many",
        "experts_many_step",
        "experts_few",
        "experts_step",
        "unembed",
        "unembed_batch",
    }


def test_calls_are_distinct_and_complete(called: list[OpCall]) -> None:
    """Of a composed op both forms are found; the layers with full attention and the sliding ones differ."""
    spaces = [str(call.space) for call in called]
    assert len(spaces) == len(set(spaces)) == 18
    assert {call.space.shape["visible"] for call in called if "visible" in call.space.shape} == {128, 8192}
    assert {call.space.shape["length"] for call in called if "length" in call.space.shape} == {1, 128, 2048}
    for call in called:
        assert call.kernel.config_space is not None
        assert call.kernel.config_space(call.arguments, "sm_90") == call.space
        assert tuple(call.arguments) == call.op.argument_names


def test_the_shipped_tuned_configs_serve_the_calls_of_a_20b(called: list[OpCall]) -> None:
    """Each file on its own serves what its compiler does otherwise. The first is that of the compiler here."""
    shipped = [configs for configs in shipped_tuned_configs() if configs.arch == "sm_90"]
    without = {call.space.name for call in called if not any(configs.find(call.space) for configs in shipped)}
    assert without == GUESSED
    assert all(entry.us <= entry.default_us for configs in shipped for entry in configs.entries)
    triton = installed("triton")
    assert triton is not None
    distances = [distance(configs.versions["triton"], triton) for configs in shipped]
    assert distances == sorted(distances) and len(shipped) > 1


def test_inputs_are_like_those_of_real_use() -> None:
    """Routing that differs by token, positions inside of the context, values that a model could have."""
    for call in op_calls(PRESETS["tiny"], Sizes((2,), 512, (64,)), torch.bfloat16, "sm_90"):
        inputs = call.op.draw(call.arguments, torch.Generator().manual_seed(1), position=300)
        assert inputs.keys() == call.arguments.keys()
        for name, value in call.arguments.items():
            if isinstance(value, torch.Tensor):
                assert (inputs[name].shape, inputs[name].dtype) == (value.shape, value.dtype)
            else:
                assert inputs[name] == value
        if "expert_indices" in inputs:
            assert len(inputs["expert_indices"].flatten().unique()) > 4
        if "positions" in inputs:
            last = inputs["positions"].max().item()
            assert 300 - 64 <= last <= 300 and inputs["positions"].min() >= 0
        result = call.op.reference(**inputs)
        first = (result if isinstance(result, tuple) else (result,))[0].float()
        assert 0.01 < first.square().mean().sqrt() < 10


def test_a_build_names_the_tuned_configs_that_it_uses(called: list[OpCall]) -> None:
    """A user's own come first. A file that serves no kernel, or has numbers that no kernel has, is refused."""
    space = next(call.space for call in called if call.space.name == "unembed")
    config = {part: numbers._asdict() for part, numbers in space.default.items()}
    own = tuned(TunedConfig("unembed", dict(space.shape), config, 1.0, 1.0))
    shipped = shipped_tuned_configs()

    def chosen(*configs: TunedConfigs, arch: str = "sm_90") -> ConfigChooser:
        chooser = ConfigChooser(arch, (*configs, *shipped))
        for call in called:
            chooser.choose(call.space)
        return chooser

    def check(chooser: ConfigChooser, path: Path = OWN) -> None:
        building._check_tuned_configs(SimpleNamespace(tuned_configs=(path,)), {"sm_90": chooser})

    without = chosen()
    assert set(without.chosen) == {str(call.space) for call in called}
    guessed = {name for name, configs in without.chosen.items() if configs is None}
    assert guessed == {str(call.space) for call in called if call.space.name in GUESSED}
    assert [configs.label for configs in without.used] == [configs.label for configs in shipped]
    assert [configs.label for configs in chosen(own).used] == [own.label, *(configs.label for configs in shipped)]
    assert chosen(own).chosen[str(space)] is own
    check(chosen(own))
    assert chosen(own, arch="sm_80").used == []
    with pytest.raises(UsageError, match=r"--tuned-configs own.json: serves none of the kernels of this build"):
        check(chosen(tuned(entry())))
    wrong = {"logits": config["logits"] | {"rows": 3}}
    with pytest.raises(UsageError, match=r"entry unembed has the numbers .*'rows': 3.*run gptoss-export tune again"):
        chosen(replace(own, entries=(TunedConfig("unembed", dict(space.shape), wrong, 1.0, 1.0),)))


def test_calls_of_ranks_have_their_sizes_and_exchange_nothing() -> None:
    """Of four ranks that share a 20b two kinds: with 23 and with 22 groups of columns."""
    sizes = Sizes((1,), 8192, (128,), ranks=4)
    found = op_calls(PRESETS["20b"], sizes, torch.bfloat16, "sm_90")
    assert {call.space.shape["inter"] for call in found if "inter" in call.space.shape} == {23 * 32, 22 * 32}
    assert {call.space.shape["heads"] for call in found if "heads" in call.space.shape} == {16}
    assert all(call.arguments.get("places") is None and call.arguments.get("ranks", 1) == 1 for call in found)
    assert "sum_ranks" not in {call.op.name for call in found}

"""How kernels are found, how a call gets its launch config, and that a launch depends on the call alone."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from kernel_calls import LAUNCHES
from kernel_cases import PartsByKernels, is_covered
from launch_recorder import record
from torch._subclasses.fake_tensor import FakeTensorMode

from gptoss_export.errors import LoweringError, UsageError
from gptoss_export.kernels import registry
from gptoss_export.kernels.kernel import ConfigChooser, Kernel
from gptoss_export.kernels.tuned_configs import TunedConfig, TunedConfigs, read_tuned_configs, write_tuned_configs
from gptoss_export.model.ops import OPS

KERNELS = registry.kernels()


def call(label: str) -> tuple[str, dict[str, Any]]:
    op, arguments, _ = LAUNCHES[label]
    return op, OPS[op].arguments((), arguments())


def tuned(label: str, arch: str = "sm_90", **changes: Any) -> TunedConfigs:
    """Tuned configs with one entry, for a call: its default with another number of warps."""
    op, arguments = call(label)
    space = KERNELS[op].config_space(arguments, "sm_90")
    config = {part: numbers._asdict() for part, numbers in space.default.items()}
    part = next(reversed(config))
    config[part]["warps"] = next(w for w in space.options[part]["warps"] if w != config[part]["warps"])
    entry = TunedConfig(space.name, dict(space.shape) | changes, config, us=1.0, default_us=2.0)
    return TunedConfigs(arch, "a GPU", {"triton": "3.7.1"}, (entry,))


LAUNCHING = [label for label, (_, _, names) in LAUNCHES.items() if names]
CONFIGURED = [
    label
    for label, (op, _, _) in LAUNCHES.items()
    if KERNELS[op].config_space is not None and is_covered(op, call(label)[1])
]


# ---- launch configs ----------------------------------------------------------------------------------------


def test_the_first_tuned_configs_that_serve_a_call_are_used_and_recorded() -> None:
    label = "experts half, one token"
    op, arguments = call(label)
    space = KERNELS[op].config_space(arguments, "sm_90")
    of_another_arch, of_another_shape, first, second = (
        tuned(label, arch="sm_80"),
        tuned(label, hidden=64),
        tuned(label),
        tuned(label),
    )
    chooser = ConfigChooser("sm_90", (of_another_arch, of_another_shape, first, second))
    config = chooser.choose(space)
    assert {part: numbers._asdict() for part, numbers in config.items()} == first.entries[0].config
    assert config != space.default
    assert list(chooser.chosen) == [str(space)] and chooser.chosen[str(space)] is first
    assert len(chooser.used) == 1 and chooser.used[0] is first


def test_a_call_without_tuned_configs_gets_the_kernels_own_guess() -> None:
    op, arguments = call("decode")
    space = KERNELS[op].config_space(arguments, "sm_90")
    chooser = ConfigChooser("sm_90", (tuned("decode", window=7),))
    assert chooser.choose(space) == space.default
    assert chooser.chosen == {str(space): None} and chooser.used == []


def test_bound_kernels_record_their_choices() -> None:
    """One choice for each call that has a launch config. Kernels without one, and the reference, make none."""
    label = "decode"
    configs = tuned(label)
    chooser = ConfigChooser("sm_90", (configs,))
    for each in (label, "attention half, chunk", "unembedding, 200 rows", "rotary"):
        op, arguments = call(each)
        record_with(chooser, op, arguments)
    decode, chunk = (
        str(KERNELS["sink_attention"].config_space(call(each)[1], "sm_90")) for each in (label, "prefill, window")
    )
    assert set(chooser.chosen) == {decode, chunk}  # of the chunk's sublayer, the attention
    assert chooser.chosen[decode] is configs and chooser.chosen[chunk] is None


def record_with(chooser: ConfigChooser, op: str, arguments: dict[str, Any]) -> None:
    """Call a bound kernel with fake tensors."""
    with FakeTensorMode():
        fakes = {
            name: torch.empty(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        with PartsByKernels(chooser):
            KERNELS[op].bind(OPS[op], chooser)(**fakes)


def test_tuned_configs_change_what_is_launched() -> None:
    label = "decode"
    op, arguments = call(label)
    configs = tuned(label)
    (guessed, *_), (launched, *_) = record(op, arguments), record(op, arguments, (configs,))
    assert launched.name == guessed.name == "_attend_pdl"
    assert launched.arguments["num_warps"] == configs.entries[0].config["attend"]["warps"]
    assert launched.arguments["num_warps"] != guessed.arguments["num_warps"]


def test_tuned_configs_of_other_kernels_are_refused() -> None:
    op, arguments = call("decode")
    configs = tuned("decode")
    configs.entries[0].config["attend"]["slots"] = 3
    with pytest.raises(UsageError, match=r"entry attention .* run gptoss-export tune again"):
        record(op, arguments, (configs,))


@pytest.mark.parametrize("label", CONFIGURED)
def test_tuning_may_change_every_number_of_the_default(label: str) -> None:
    op, arguments = call(label)
    space = KERNELS[op].config_space(arguments, "sm_90")
    assert space.options.keys() == space.default.keys()
    assert all(set(space.options[part]) == set(numbers._fields) for part, numbers in space.default.items())
    assert set(space.scaled) <= space.shape.keys()


@pytest.mark.parametrize("label", LAUNCHING)
def test_a_launch_depends_on_its_arguments_alone(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on whether this process runs Triton's interpreter."""
    op, arguments = call(label)
    expected = [launch.description() for launch in record(op, arguments)]
    monkeypatch.setattr(triton.knobs.runtime, "interpret", not triton.knobs.runtime.interpret)
    assert [launch.description() for launch in record(op, arguments)] == expected


@pytest.mark.parametrize("label", LAUNCHING)
def test_the_interpreter_gets_no_assembly(label: str) -> None:
    from gptoss_plugins.arch import INTERPRETER

    op, arguments = call(label)
    for launch in record(op, arguments, arch=INTERPRETER):
        assert not launch.arguments.get("EARLY") and not launch.arguments.get("PAIRED")
        assert not launch.arguments.get("ASYNC") and launch.arguments.get("EXACT", True)


def test_shipped_tuned_configs_are_written_as_they_are_read(tmp_path: Path) -> None:
    from gptoss_plugins import TUNED_CONFIGS

    paths = sorted(TUNED_CONFIGS.glob("*.json"))
    assert paths and len(registry.shipped_tuned_configs()) == len(paths)
    for path in paths:
        write_tuned_configs(read_tuned_configs(path), tmp_path / path.name)
        assert (tmp_path / path.name).read_text() == path.read_text()


# ---- packages ----------------------------------------------------------------------------------------------


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the installed packages by others: each is a name and the kernels that it offers."""

    def offered(**packages: dict[str, Kernel]) -> None:
        entries = []
        for package, kernels in packages.items():
            module = ModuleType(package)
            module.KERNELS = kernels  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, package, module)
            entries.append(EntryPoint(package, f"{package}:KERNELS", registry.KERNELS))
        monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.KERNELS else [])

    return offered


def test_several_packages_offer_kernels(offer: Any) -> None:
    """An op may have no kernel."""
    one, other = KERNELS["rotary"], KERNELS["unembed"]
    offer(one={"rotary": one}, other={"unembed": other})
    assert registry.kernels() == {"rotary": one, "unembed": other}
    assert registry.shipped_tuned_configs() == ()


def test_two_packages_with_kernels_for_one_op_are_refused(offer: Any) -> None:
    offer(one={"rotary": KERNELS["rotary"]}, other={"rotary": KERNELS["rotary"]})
    with pytest.raises(LoweringError, match=r"rotary: offered by .*one:KERNELS and by .*other:KERNELS; uninstall one"):
        registry.kernels()


def test_kernels_for_an_unknown_op_are_refused(offer: Any) -> None:
    offer(one={"rotaries": KERNELS["rotary"]})
    with pytest.raises(LoweringError, match=r"rotaries: offered by .*one:KERNELS, expected one of adapted_exp"):
        registry.kernels()


def test_no_package_with_kernels_is_refused(offer: Any) -> None:
    offer()
    with pytest.raises(LoweringError, match=r"no installed package offers kernels .*gptoss_export.kernels"):
        registry.kernels()


def test_a_package_that_cannot_be_imported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("one", "gptoss_no_such_module:KERNELS", registry.KERNELS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(LoweringError, match=r"one.* cannot be imported: No module named 'gptoss_no_such_module'"):
        registry.kernels()

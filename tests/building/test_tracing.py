"""What tracing and lowering refuse: results that are not the signature's, ops that need a kernel and have none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from gptoss_export.artifact.calls import Signature, TensorSpec
from gptoss_export.artifact.programs import Sizes, Unembed
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compiler import export, lower
from gptoss_export.compiler.export import trace
from gptoss_export.errors import LoweringError
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.kernels.registry import kernels
from gptoss_export.model.config import ModelConfig
from gptoss_export.model.ops import OPS

SIZES = Sizes((1,), 64, (8,))


@dataclass(frozen=True)
class OtherResults(Unembed):
    """An unembedding that promises other results than it has."""

    output: int = 0
    shape: tuple[int, ...] = (1, 512)
    dtype: str = "float32"

    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        right = super().signature(config, sizes, dtype)
        outputs = list(right.outputs)
        item = outputs[self.output]
        outputs[self.output] = TensorSpec(item.name, item.role, self.shape, self.dtype)
        return Signature(right.inputs, tuple(outputs))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (OtherResults(1, 0, (1, 511)), r"data float32 \[1, 512\], expected data float32 \[1, 511\]"),
        (OtherResults(1, 1, (1,), "int32"), r"data int64 \[1\], expected data int32 \[1\]"),
    ],
    ids=["shape", "dtype"],
)
def test_results_that_are_not_the_signatures(
    program: OtherResults, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export._MODULES, OtherResults, export._MODULES[Unembed])
    with pytest.raises(LoweringError, match=rf"program unembed_1: traced with other results\n.*{message}"):
        trace(program, PRESETS["tiny"], SIZES, torch.float32, torch.device("cpu"))


def test_an_op_that_needs_a_kernel_and_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets without scatters and gathers of packed weights launch kernels. Other ops have their references."""
    offered = dict(kernels())
    chooser = ConfigChooser("sm_90")
    found = lower.launch_implementations(chooser)
    assert {name for name, op in OPS.items() if found[name] is op.reference} == {
        name for name, op in OPS.items() if not (op.as_kernel or op.serves_everywhere)
    }
    del offered["sink_attention"]
    monkeypatch.setattr(lower, "kernels", lambda: offered)
    with pytest.raises(LoweringError, match=r"need a kernel, and no installed package offers one\n.*sink_attention"):
        lower.launch_implementations(chooser)

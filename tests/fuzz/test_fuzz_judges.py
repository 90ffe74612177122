"""Wrong answers are seen: each surface judges the right answer as right, and a changed one as wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_machine
import pytest
from fuzz_checkpoints import CheckpointCase, Checkpoints
from fuzz_commands import Commands
from fuzz_json import Damage
from fuzz_manifests import RunManifests, ShownManifests
from fuzz_scratch import Scratch
from fuzz_settings import Schedules, Tokenizers, TunedConfigs
from fuzz_surface import Bases, Surface
from fuzz_worker import RIGHT, Kind, Result, Worker

if why := fuzz_machine.refusal():
    pytest.skip(why, allow_module_level=True)


def with_output(change: Callable[[Any], object]) -> Callable[[Result], Result]:
    """A result whose JSON on stdout is changed."""

    def changed(result: Result) -> Result:
        value = json.loads(result.stdout)
        change(value)
        return dataclasses.replace(result, stdout=json.dumps(value))

    return changed


def with_value(change: Callable[[Any], object]) -> Callable[[Result], Result]:
    """A result whose job returned something else."""

    def changed(result: Result) -> Result:
        report = json.loads(json.dumps(result.report))
        change(report["value"])
        return dataclasses.replace(result, report=report)

    return changed


def one_more(tokens: list[int]) -> None:
    tokens[-1] = (tokens[-1] + 1) % 512


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (ShownManifests, with_output(lambda v: v["sizes"].update(widths=[4])), "shows another manifest: sizes"),
        (RunManifests, with_output(lambda v: one_more(v["tokens"])), "or those of the reference"),
        (RunManifests, with_output(lambda v: v["tokens"].pop()), "or those of the reference"),
        (Commands, with_output(lambda v: one_more(v["tokens"])), "expected"),
        (Commands, lambda result: dataclasses.replace(result, status=1), "exit 1"),
        (Checkpoints, with_value(lambda v: v["config"].update(head_dim=30)), "head_dim: read 30"),
        (Checkpoints, with_value(lambda v: v["config"]["rope"].update(theta=1.0)), "rope: read"),
        (Checkpoints, with_value(lambda v: v["config"]["layer_types"].reverse()), "layer_types: read"),
        (Checkpoints, with_value(lambda v: v["tensors"]["lm_head.weight"].reverse()), "reads other tensors"),
        (Checkpoints, with_value(lambda v: v["tensors"].pop("lm_head.weight")), "reads other tensors"),
        (Checkpoints, with_value(lambda v: v["stop_tokens"].append(3)), "stop tokens"),
        (Tokenizers, with_value(lambda v: v["ids"].append(3)), "the library alone"),
        (Tokenizers, with_value(lambda v: v.update(text="other")), "the library alone"),
        (Tokenizers, with_value(lambda v: v.update(streamed="other")), "streams 'other'"),
        (Schedules, with_value(lambda v: v["programs"]["decode_1"].update(arena=1)), "another schedule"),
        (TunedConfigs, with_value(lambda v: v["entries"].pop()), "other tuned configs"),
        (TunedConfigs, with_value(lambda v: v.update(gpu="other")), "other tuned configs"),
    ],
)
def test_a_changed_answer_is_wrong(
    kind: type[Surface[Any]],
    change: Callable[[Result], Result],
    message: str,
    bases: Bases,
    worker: Worker,
    tmp_path: Path,
) -> None:
    surface, scratch = kind(bases), Scratch(tmp_path / "case")
    scratch.make()
    case = surface.unchanged()
    result = worker.run(surface.prepare(case, scratch), scratch)
    assert surface.judge(case, scratch, result, worker) == RIGHT
    if not scratch.report.exists():  # a judge that asks the worker uses the report's place
        scratch.report.touch()
    found = surface.judge(case, scratch, change(result), worker)
    assert found.kind == Kind.WRONG and message in found.detail


def test_a_build_of_another_model_is_wrong(bases: Bases, worker: Worker, tmp_path: Path) -> None:
    surface, scratch = Checkpoints(bases), Scratch(tmp_path / "case")
    scratch.make()
    case = CheckpointCase("hf", "config", Damage(), build=True)
    result = worker.run(surface.prepare(case, scratch), scratch)
    assert surface.judge(case, scratch, result, worker) == RIGHT
    config = json.loads((scratch.input / "checkpoint" / "config.json").read_text())
    (scratch.input / "checkpoint" / "config.json").unlink()
    (scratch.input / "checkpoint" / "config.json").write_text(json.dumps(config | {"vocab_size": 500}))
    assert surface.judge(case, scratch, result, worker).kind == Kind.WRONG

"""What a schedule may hold, and how it is compared with its manifest and its engines. Needs no TensorRT and no GPU."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from tensorrt_fakes import MANIFEST, SCHEDULE, TENSORS, FakeEngine

from gptoss_export.errors import ArtifactError
from gptoss_export.targets.tensorrt.check import binding_violations, load_schedule
from gptoss_export.targets.tensorrt.schedule import save_schedule


def test_a_schedule_is_read_back(tmp_path):
    save_schedule(SCHEDULE, tmp_path)
    assert load_schedule(tmp_path, MANIFEST) == SCHEDULE


def _steps(data: dict) -> list[dict]:
    return data["programs"]["decode"]["steps"]


CHANGES = [
    (lambda d: d.clear(), "malformed"),
    (lambda d: d["programs"].update(ghost=d["programs"]["decode"]), "programs: found decode, ghost, expected decode"),
    (lambda d: d["programs"].clear(), "programs: found , expected decode"),
    (lambda d: d["programs"]["decode"].update(arena=-1), "arena is -1"),
    (lambda d: d["programs"]["decode"].update(arena=True), "arena is True"),
    (lambda d: d["programs"]["decode"].update(arena="1"), "arena is '1'"),
    (
        lambda d: d["programs"]["decode"].update(arena=1000),
        "schedule step 1: 512 bytes at 512 are outside of the arena of 1000",
    ),
    (
        lambda d: d["programs"]["decode"].update(arena=256),
        "schedule step 0: 1 bytes at 256 are outside of the arena of 256",
    ),
    (lambda d: _steps(d)[1]["arguments"][0].update(value=272), "arena offset 272, expected a multiple of 256"),
    (lambda d: _steps(d)[0]["inputs"][0].update(value=3), "input 3: the program has 3"),
    (lambda d: _steps(d)[0]["inputs"][0].update(value=-1), "'input' -1, expected"),
    (lambda d: _steps(d)[0]["inputs"][0].update(value=1.0), "'input' 1.0, expected"),
    (lambda d: _steps(d)[0]["inputs"][0].update(place="attic"), "'attic' 0, expected input, arena, output"),
    (lambda d: _steps(d)[2]["outputs"][0].update(value=1), "output 1: the program has 1"),
    (lambda d: _steps(d)[2]["outputs"][0].update(place="input"), "writes input tokens, which is a data"),
    (lambda d: _steps(d)[1]["arguments"][2].update(value=2), "writes input w, which is a weight"),
    (lambda d: _steps(d)[1]["arguments"].pop(), "k-1 is given 3 arguments, it takes 4"),
    (lambda d: _steps(d)[1].update(plugin="ghost"), "unknown plugin 'ghost'"),
    (lambda d: _steps(d)[0].update(engine="ghost"), "unknown engine 'ghost'"),
    (
        lambda d: d["plugins"]["k-1"].update(bytes=[32, 129, 129, 512]),
        r"input 1 \(k_cache.0\) has 128 bytes, 129 are",
    ),
    (lambda d: d["plugins"]["k-1"].update(bytes=[32]), r"k-1: bytes are \(32,\)"),
    (lambda d: d["plugins"]["k-1"].update(bytes=[32, -1, 1, 1]), "k-1: bytes are"),
    (lambda d: d["plugins"]["k-1"].update(grid=[1, 1]), r"grid is \(1, 1\)"),
    (lambda d: d["plugins"]["k-1"].update(grid=[1, 1, 65536]), "grid is"),
    (lambda d: d["plugins"]["k-1"].update(grid=[0, 1, 1]), "grid is"),
    (lambda d: d["plugins"]["k-1"].update(threads=2048), "threads is 2048, expected 1 to 1024"),
    (lambda d: d["plugins"]["k-1"].update(shared=1 << 20), "shared is 1048576"),
    (lambda d: d["plugins"]["k-1"].update(function=7), "function is 7"),
    (lambda d: d["plugins"]["k-1"].pop("bytes"), "malformed .KeyError: 'bytes'"),
    (lambda d: d["plugins"].update({"../k": d["plugins"]["k-1"]}), "plugin '../k': expected a plain file name"),
    (lambda d: d["engines"].update({"a/b": ""}), "engine 'a/b': expected a plain file name"),
    (lambda d: d["engines"].update({"f": ""}), "engines/f.engine: not among the manifest's files"),
    (lambda d: d["engines"].update({"e": 1}), "engine e: 1, expected a string"),
    (
        lambda d: d["plugins"].update({"k-2": d["plugins"]["k-1"]}),
        "plugins/k-2.cubin: not among the manifest's files",
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_schedule_that_no_build_writes(tmp_path, change, message):
    data = json.loads(json.dumps(dataclasses.asdict(SCHEDULE)))
    change(data)
    (tmp_path / "schedule.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_schedule(tmp_path, MANIFEST)
    assert "schedule.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"in1": ((9, 8), torch.bfloat16)}, r"in1: input 2 \(w\) has 128 bytes, 144 are"),
        (
            {"out0": ((3, 8), torch.float32)},
            r"schedule step 2: engines/e.engine: out0: output 0 \(logits\) has 64 bytes, 96 are",
        ),
        (
            {"out0": ((2, 128), torch.float32)},
            "schedule step 0: .*out0: 1024 bytes at 256 are outside of the arena of 1024",
        ),
        (
            {"in2": ((1,), torch.int64)},
            "has tensors in0, in1, in2, out0, the schedule binds in0, in1, out0",
        ),
        ({"in0": ((-1,), torch.int64)}, r"in0 has shape \[-1\], expected a static one"),
    ],
)
def test_engines_are_compared_with_the_schedule(change, message):
    problems = "\n".join(binding_violations(SCHEDULE, MANIFEST, {"e": FakeEngine(TENSORS | change)}))
    assert re.search(message, problems) if message else not problems, problems


def test_an_output_in_place_of_an_input_is_found(monkeypatch):
    class Swapped(FakeEngine):
        def get_tensor_mode(self, name):
            return super().get_tensor_mode("out0" if name == "in0" else name)

    problems = list(binding_violations(SCHEDULE, MANIFEST, {"e": Swapped()}))
    assert len(problems) == 2 and all("in0 is an output, expected an input" in problem for problem in problems)

"""What a schedule may hold, and how it is compared with its manifest and its engines. Needs no TensorRT and no GPU."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace

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
    return data["programs"]["decode_1"]["steps"]


CHANGES = [
    (lambda d: d.clear(), "malformed"),
    (
        lambda d: d["programs"].update(ghost=d["programs"]["decode_1"]),
        "programs: found decode_1, ghost, expected decode_1",
    ),
    (lambda d: d["programs"].clear(), "programs: found , expected decode"),
    (lambda d: d["programs"]["decode_1"].update(arena=-1), "arena is -1"),
    (lambda d: d["programs"]["decode_1"].update(arena=True), "arena is True"),
    (lambda d: d["programs"]["decode_1"].update(arena="1"), "arena is '1'"),
    (
        lambda d: d["programs"]["decode_1"].update(arena=1000),
        "schedule step 1: 512 bytes at 512 are outside of the arena of 1000",
    ),
    (
        lambda d: d["programs"]["decode_1"].update(arena=256),
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
    (lambda d: d.update(extra=1), "expected an object with description, engines, plugins, programs"),
    (lambda d: d["programs"]["decode_1"].update(extra=1), "expected an object with arena, steps"),
    (lambda d: _steps(d)[0].update(arguments=[]), "expected an object with engine, inputs, outputs"),
    (lambda d: _steps(d)[1].update(extra=1), "expected an object with plugin, arguments"),
    (lambda d: _steps(d)[0]["inputs"][0].update(extra=1), "malformed"),
    (lambda d: d["plugins"]["k-1"].update(inputs="xy"), "found 'xy', expected a list"),
    (lambda d: _steps(d)[0].update(engine="ghost"), "unknown engine 'ghost'"),
    (
        lambda d: d["plugins"]["k-1"].update(bytes=[32, 129, 129, 512]),
        r"input 1 \(k_cache.0\) has 128 bytes, a step takes it for 129",
    ),
    (
        lambda d: d["plugins"]["k-1"].update(bytes=[32, 64, 64, 512]),
        r"input 1 \(k_cache.0\) has 128 bytes, a step takes it for 64",
    ),
    (lambda d: d.pop("description"), "expected an object with description, engines, plugins, programs"),
    (lambda d: d.update(description={}), "malformed .TypeError: description: found {}, expected a string"),
    (lambda d: d.update(description="{}"), "model: the code says nothing, the manifest"),
    (lambda d: d.update(description="no JSON"), "its description: cannot be read as JSON"),
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
        ({"in1": ((9, 8), torch.bfloat16)}, r"in1: input 2 \(w\) has 128 bytes, a step takes it for 144"),
        ({"in1": ((7, 8), torch.bfloat16)}, r"in1: input 2 \(w\) has 128 bytes, a step takes it for 112"),
        (
            {"out0": ((3, 8), torch.float32)},
            r"schedule step 2: engines/e.engine: out0: output 0 \(logits\) has 64 bytes, a step takes it for 96",
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


def _model(**changes):
    return {"model": dataclasses.replace(MANIFEST.model, **changes)}


def _sizes(**changes):
    return {"sizes": dataclasses.replace(MANIFEST.sizes, **changes)}


SIGNATURE = MANIFEST.programs["decode_1"]
FORGED = {
    "sizes.widths[0]": _sizes(widths=(2,)),
    "sizes.max_context": _sizes(max_context=16),
    "sizes.prefill_chunks[0]": _sizes(prefill_chunks=(8,)),
    "model.head_dim": _model(head_dim=16),
    "model.num_key_value_heads": _model(num_key_value_heads=1),
    "model.num_hidden_layers": _model(num_hidden_layers=2, layer_types=MANIFEST.model.layer_types[:2]),
    "model.layer_types[0]": _model(layer_types=("full_attention", *MANIFEST.model.layer_types[1:])),
    "model.sliding_window": _model(sliding_window=31),
    "model.vocab_size": _model(vocab_size=520),
    "model.rms_norm_eps": _model(rms_norm_eps=1e-6),
    "model.num_experts_per_tok": _model(num_experts_per_tok=2),
    "model.rope": _model(rope=None),
    "dtype": {"dtype": "float32"},
    "device": {"device": "cpu"},
    "arch": {"arch": "sm_80"},
    "target_options.experimental_full_tensorrt": {"target_options": {"experimental_full_tensorrt": True}},
    "programs.decode_1.inputs[1].shape[0]": {
        "programs": {
            "decode_1": dataclasses.replace(
                SIGNATURE,
                inputs=tuple(dataclasses.replace(item, shape=(4, *item.shape[1:])) for item in SIGNATURE.inputs),
            )
        }
    },
}


@pytest.mark.parametrize("value", FORGED)
def test_a_manifest_of_other_code(tmp_path, value):
    """A value that was changed in the manifest alone. What it changes of the shapes makes no difference."""
    save_schedule(SCHEDULE, tmp_path)
    manifest = SimpleNamespace(**vars(MANIFEST) | FORGED[value])
    with pytest.raises(ArtifactError, match=r"schedule.json: was compiled for something else") as caught:
        load_schedule(tmp_path, manifest)
    assert f"- {value}: the code says" in str(caught.value)


def test_an_output_in_place_of_an_input_is_found(monkeypatch):
    class Swapped(FakeEngine):
        def get_tensor_mode(self, name):
            return super().get_tensor_mode("out0" if name == "in0" else name)

    problems = list(binding_violations(SCHEDULE, MANIFEST, {"e": Swapped()}))
    assert len(problems) == 2 and all("in0 is an output, expected an input" in problem for problem in problems)

"""What a manifest may say of the programs' calls: compiled code checks nothing, so the manifest is held to the model."""

import json

import pytest

from gptoss_export.build import BuildOptions, build
from gptoss_export.errors import ArtifactError
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.targets import TARGETS


@pytest.fixture(scope="module")
def written(checkpoints, tmp_path_factory) -> dict:
    """A manifest as `build` writes it; nothing is compiled for it."""

    def trace_only(self, programs, plan):
        for _ in programs:
            pass
        return []

    folder = tmp_path_factory.mktemp("manifest") / "artifact"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(TARGETS["aoti"]), "compile", trace_only)
        build(checkpoints["hf"], folder, BuildOptions("aoti", "cpu", max_batch=2, max_context=64, prefill_chunks=(8,)))
    return json.loads((folder / "manifest.json").read_text())


def _load(data: dict, folder):
    (folder / "manifest.json").write_text(json.dumps(data))
    return load_manifest(folder)


def test_what_build_writes_is_accepted(written, tmp_path):
    assert set(_load(written, tmp_path).programs) == {"decode", "prefill_8", "unembed_1", "unembed_64"}


def _swap(items: list, one: int, other: int) -> None:
    items[one], items[other] = items[other], items[one]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: _swap(p["decode"]["inputs"], 0, 1), "decode: inputs are .*another order: found 'positions' at place 0"),
        (lambda p: _swap(p["decode"]["inputs"], 3, 4), "decode: inputs are .*another order: found 'v_cache.0' at place 3"),
        (lambda p: p["decode"]["inputs"].insert(0, p["decode"]["inputs"].pop()), "decode: inputs are others"),
        (lambda p: p["decode"]["inputs"].insert(1, p["decode"]["inputs"][0]), "found 'tokens' at place 1"),
        (lambda p: p["decode"]["inputs"][0].update(dtype="float32"), r"tokens is data float32 \[2\], expected data int64 \[2\]"),
        (lambda p: p["decode"]["inputs"][3].update(dtype="uint8"), "k_cache.0 is cache uint8"),
        (lambda p: p["decode"]["inputs"][3].update(role="data"), "k_cache.0 is data float32"),
        (lambda p: p["decode"]["inputs"][-1].update(dtype="float8"), "weight .* has dtype 'float8'"),
        (lambda p: p["unembed_1"]["inputs"][0].update(dtype="bfloat16"), "unembed_1: inputs hidden .* bfloat16"),
        (lambda p: p["decode"]["outputs"].reverse(), "decode: outputs are .*found 'log_total' at place 0, expected 'logits'"),
        (lambda p: p["decode"]["outputs"].pop(), "decode: outputs .*found 'the end' at place 3"),
        (lambda p: p["decode"]["outputs"][0].update(shape=[2, 7]), r"outputs logits .* \[2, 7\], expected data float32"),
        (lambda p: p["decode"]["outputs"][1].update(dtype="uint8"), r"top is data uint8 \[2\], expected data int64"),
        (lambda p: p["unembed_64"]["outputs"][2].update(shape=[1]), "unembed_64: outputs top_logprob"),
        (lambda p: p["prefill_8"]["outputs"][0].update(shape=[9, 96]), r"hidden is data float32 \[9, 96\], expected .*\[8, 96\]"),
        (lambda p: p.update({"unembed_x": p["unembed_1"]}), "programs: found .*unembed_x"),
        (lambda p: p.update({"unembed_0": p["unembed_1"]}), "programs: found .*unembed_0"),
    ],
)
def test_a_call_that_no_build_makes_is_refused(written, tmp_path, change, message):
    data = json.loads(json.dumps(written))
    change(data["programs"])
    with pytest.raises(ArtifactError, match=message):
        _load(data, tmp_path)


def test_a_dtype_that_no_artifact_computes_in_is_refused(written, tmp_path):
    with pytest.raises(ArtifactError, match="dtype: found 'int64', expected float32 or bfloat16"):
        _load(written | {"dtype": "int64"}, tmp_path)

"""The target onnx: parity of both kinds of model, onnxruntime-genai on the artifact, a runner without torch."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss_export.build import BuildOptions, build
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import ArtifactError, LoweringError, RunError
from gptoss_export.artifact.manifest import load_manifest, save_manifest
from gptoss_export.verify.metric import TOLERANCES, error
from gptoss_export.model.ops import OPS
from gptoss_export.verify.parity import verify
from gptoss_export.runtime import Runner, Sampling
from gptoss_export.targets import TARGETS

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

ARCHS = ("onnxruntime", "portable")
PROMPT = [(37 * index) % PRESETS["tiny"].vocab_size for index in range(140)]  # past the window, three chunks


def made(checkpoint: Path, folder: Path, arch: str, max_batch: int = 2, max_context: int = 4352) -> Path:
    options = BuildOptions("onnx", "cpu", arch=arch, max_batch=max_batch, max_context=max_context, prefill_chunks=(64,))
    build(checkpoint, folder, options)
    return folder


@pytest.fixture(scope="module")
def artifacts(checkpoints, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return {arch: made(checkpoints["hf"], folder / arch, arch) for arch in ARCHS}


# ---- parity ------------------------------------------------------------------------------------------------


def test_attention_of_onnxruntime_at_every_border(artifacts, checkpoints):
    """Window, chunk and YaRN's 4,096 positions, and unequal prompts in a batch; beside the portable model."""
    report = verify(artifacts["onnxruntime"], checkpoints["hf"], "transformers", [1, 31, 32, 33, 64, 65, 97, 4097])
    assert report.passed and all(row.top1 == 1.0 for row in report.rows), report.rows
    assert report.rows[-1].label.startswith("batch")


def test_standard_operators(artifacts, checkpoints):
    report = verify(
        artifacts["portable"], checkpoints["hf"], "transformers", [1, 31, 32, 33, 65, 97, 200, 4097], beside=artifacts["onnxruntime"]
    )
    assert report.passed and all(row.top1 == 1.0 for row in report.rows), report.rows


@pytest.mark.parametrize("layout", ["original", "hf-bf16"])
def test_other_layouts(checkpoints, tmp_path, layout):
    artifact = made(checkpoints[layout], tmp_path / "a", "onnxruntime", max_context=256)
    assert verify(artifact, checkpoints[layout], "transformers", [1, 33, 130]).passed


@pytest.mark.parametrize("arch", ARCHS)
def test_genai_generates_the_same(artifacts, arch):
    """As it is, from the folder alone."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(artifacts[arch]))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + 50, min_length=len(PROMPT) + 50)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(PROMPT)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    stops = load_manifest(artifacts[arch]).stop_tokens
    wanted = Runner.load(artifacts[arch]).generate(PROMPT, 50, stop_tokens=()).tokens
    assert not set(stops) & set(wanted)  # min_length hides stop tokens from genai alone
    assert found == wanted


# ---- functions ---------------------------------------------------------------------------------------------

EXPERTS = dict(OPS["mxfp4_experts"].cases(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("label", EXPERTS)
def test_experts_function(label):
    """The function alone against the op's reference, at the op's own cases."""
    from gptoss_export.targets.onnx.functions import mxfp4_experts
    from gptoss_export.targets.onnx.graph import OPSET, OWN

    *tensors, alpha, limit = EXPERTS[label]
    function = mxfp4_experts()
    arrays = {name: tensor.numpy() for name, tensor in zip(function.input, tensors, strict=True)}
    info = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    node = onnx.helper.make_node("Mxfp4Experts", list(arrays), ["out"], domain=OWN, alpha=alpha, limit=limit)
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, arrays["x"].shape)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "test", info, [out]), functions=[function], ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(OWN, 1)],
    )  # fmt: skip
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, arrays)[0])
    found_error = error(found, OPS["mxfp4_experts"].reference(*EXPERTS[label]))
    assert found_error.within(TOLERANCES[torch.float32]), found_error


def test_every_code_and_scale_is_unpacked():
    """All 16 codes at all 256 scales, NaN included."""
    from gptoss_export.model.mxfp4 import dequantize
    from gptoss_export.targets.onnx.functions import mxfp4_experts

    tables = [onnx.numpy_helper.to_array(node.attribute[0].t) for node in mxfp4_experts().node
              if node.op_type == "Constant" and node.attribute[0].name == "value"]  # fmt: skip
    values, powers = (next(table for table in tables if table.shape == shape) for shape in ((256, 2), (256,)))
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 1, 16)  # every pair of codes
    for scale in range(256):
        scales = torch.full((16, 1), scale, dtype=torch.uint8)
        with np.errstate(over="ignore"):
            found = values[blocks.numpy()].reshape(16, 32) * powers[scale]
        assert np.array_equal(found, dequantize(blocks, scales).numpy(), equal_nan=True)


def test_of_equal_router_logits_the_lower_expert_wins():
    """What the export relies on: onnxruntime's TopK, over as many experts as the models have."""
    for experts in 8, 32, 128:
        values = np.random.default_rng(0).integers(0, 3, (40, experts)).astype(np.float32)
        node = onnx.helper.make_node("TopK", ["x", "k"], ["values", "indices"])
        graph = onnx.helper.make_graph(
            [node], "test", [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, values.shape)],
            [onnx.helper.make_tensor_value_info("indices", onnx.TensorProto.INT64, None)],
            [onnx.numpy_helper.from_array(np.array([4]), "k")],
        )  # fmt: skip
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        (found,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": values})
        wanted = torch.from_numpy(values).sort(dim=-1, descending=True, stable=True).indices[:, :4].numpy()
        assert np.array_equal(found, wanted)


# ---- the artifact ------------------------------------------------------------------------------------------


def test_weights_stay_where_they_are(artifacts, checkpoints):
    model = onnx.load(artifacts["portable"] / "model.onnx", load_external_data=False)
    assert len(model.graph.initializer) > 50
    assert [item.name for item in model.graph.initializer if item.data_location != onnx.TensorProto.EXTERNAL] == ["logits_from", "logits_to"]
    assert (artifacts["portable"] / "model.onnx").stat().st_size < 100_000
    for path in (artifacts["portable"] / "weights").iterdir():
        assert path.samefile(checkpoints["hf"] / path.name)
    assert not {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    assert {(function.domain, function.name) for function in model.functions} == {
        ("gptoss", "Mxfp4Experts"), ("gptoss", "SinkAttention"),
    }  # fmt: skip


def test_onnx_accepts_a_copy(artifacts, tmp_path):
    """By path, with shape inference; a copy, since it refuses files with several hard links."""
    for arch, folder in artifacts.items():
        copy = shutil.copytree(folder, tmp_path / arch)
        onnx.checker.check_model(str(copy / "model.onnx"), full_check=True)
        onnx.shape_inference.infer_shapes_path(str(copy / "model.onnx"), str(tmp_path / f"{arch}.onnx"), strict_mode=True)


def test_commands(artifacts, cli):
    artifact = artifacts["onnxruntime"]
    code, out, err = cli("inspect", artifact)
    assert code == 0 and "onnx for cpu (onnxruntime), float32" in out, err
    code, out, err = cli("bench", artifact, "--context", "70", "--batch", "1,2", "--json")
    assert code == 0 and [row["batch"] for row in json.loads(out)["measurements"]] == [1, 2], err
    code, out, err = cli("run", artifact, "--tokens", "1,2,3", "--max-new-tokens", "5", "--no-stop", "--json")
    assert code == 0 and len(json.loads(out)["tokens"]) == 5, err
    code, _, err = cli("bench", artifact, "--context", "70", "--profile")
    assert code == 2 and "expected an artifact for CUDA" in err


def test_two_builds_are_the_same(artifacts, checkpoints, tmp_path):
    again = made(checkpoints["hf"], tmp_path / "again", "onnxruntime")
    for name in "model.onnx", "genai_config.json":
        assert (again / name).read_bytes() == (artifacts["onnxruntime"] / name).read_bytes()


def test_an_op_without_converter_is_named(checkpoints, tmp_path, monkeypatch):
    from gptoss_export.targets.onnx.converters import CONVERTERS

    monkeypatch.delitem(CONVERTERS, torch.ops.gptoss.unembed.default)
    with pytest.raises(LoweringError, match="unembed.*gptoss.unembed.default"):
        made(checkpoints["hf"], tmp_path / "a", "onnxruntime")
    assert not (tmp_path / "a").exists()


def test_refusals(artifacts, checkpoints, tmp_path, cli, monkeypatch):
    target, manifest = TARGETS["onnx"], load_manifest(artifacts["onnxruntime"])
    assert target.problems(manifest, Path()) == []
    other = dataclasses.replace(manifest, archs=("sm_90",), files={})
    assert "arch: artifact is for sm_90" in str(target.problems(other, Path()))
    assert "model.onnx is not in the manifest" in str(target.problems(other, Path()))
    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "onnx", "--arch", "sm_90", "--portable")
    assert code == 2 and "--portable: means --arch portable, found --arch sm_90" in err
    import gptoss_export.targets.onnx.compile as module

    monkeypatch.setattr(module, "version", lambda package: "1.23.2")
    assert "found 1.23.2, expected 1.24 or later" in str(target.problems(manifest, Path()))
    assert "to run it: " in target.available("cpu").detail
    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "aoti", "--portable")
    assert code == 2 and "--arch portable: aoti compiles here for" in err
    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "onnx", "--dtype", "bfloat16")
    assert code == 2 and "onnx on cpu builds float32" in err


def test_a_model_that_is_not_the_manifests(artifacts, tmp_path):
    from gptoss_export.targets.onnx.model_cpu import load_model

    manifest = load_manifest(artifacts["onnxruntime"])
    fewer = dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, num_key_value_heads=1))
    with pytest.raises(ArtifactError, match="not the model of the manifest"):
        load_model(fewer, artifacts["onnxruntime"] / "model.onnx")
    for changes, message in (
        ({"model": dataclasses.replace(manifest.model, vocab_size=520)}, "outputs logits: found .*512.*, expected .*520"),
        ({"archs": ("portable",)}, "arch: found onnxruntime, expected portable"),
        ({"max_context": 9999}, "max_context: found 4352, expected 9999"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_model(dataclasses.replace(manifest, **changes), artifacts["onnxruntime"] / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="cannot load it"):
        load_model(manifest, tmp_path / "model.onnx")


def test_programs_are_asked_for_where_they_are_needed(artifacts, tmp_path):
    """An artifact whose manifest calls it another target's."""
    save_manifest(dataclasses.replace(load_manifest(artifacts["onnxruntime"]), target="aoti", archs=("x86_64-DEFAULT",)), tmp_path)
    with pytest.raises(ArtifactError):
        Runner.load(tmp_path)


# ---- the runner --------------------------------------------------------------------------------------------

ALONE = """
import sys
for name in ("torch", "safetensors", "onnx", "transformers", "click", "rich", "triton"):
    sys.modules[name] = None  # as if it were not installed
from gptoss_export.runtime import Runner, Sampling
runner = Runner.load(sys.argv[1])
print(runner.generate([1, 2, 3], 8, stop_tokens=()).tokens)
print(runner.generate([1, 2, 3], 8, Sampling(0.8, top_k=50, top_p=0.9, seed=3), stop_tokens=()).tokens)
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_runs_with_onnxruntime_and_numpy_alone(artifacts, artifact, arch):
    done = subprocess.run([sys.executable, "-c", ALONE, artifacts[arch]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    other = Runner.load(artifact)  # compiled, and drawing its tokens in torch
    options = Sampling(), Sampling(0.8, top_k=50, top_p=0.9, seed=3)
    wanted = [other.generate([1, 2, 3], 8, option, stop_tokens=()).tokens for option in options]
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted


@pytest.mark.parametrize("arch", ARCHS)
def test_slots_are_apart(artifacts, arch):
    """Idle slots, cuts and fresh starts change nothing for the others."""
    runner = Runner.load(artifacts[arch])
    wanted = runner.generate(PROMPT, 6, stop_tokens=()).tokens
    batch = runner.generate_batch([[5, 6], PROMPT], 6, stop_tokens=())
    assert batch[1].tokens == wanted and batch[0].tokens == runner.generate([5, 6], 6, stop_tokens=()).tokens
    runner.reset()
    first = runner.prefill(PROMPT, 1)
    runner.prefill([9, 8, 7], 0)
    runner.decode([1, None])
    runner.reset(0)
    after = runner.decode([None, int(first.argmax())])[1]
    runner.truncate(len(PROMPT) - 1, 1)
    again = runner.prefill(PROMPT[-1:], 1)
    assert error(torch.from_numpy(again), torch.from_numpy(first)).within(TOLERANCES[torch.float32])
    assert int(after.argmax()) == wanted[1] and runner.length(0) == 0 and runner.length(1) == len(PROMPT)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_full_slot_is_left_alone(checkpoints, tmp_path, arch):
    """A sequence as long as the context is idle while another decodes; going on with it is refused."""
    runner = Runner.load(made(checkpoints["hf"], tmp_path / "a", arch, max_context=64))
    wanted = runner.score(PROMPT[:64], 0)
    runner.prefill(PROMPT[:5], 1)
    runner.decode([None, 3])
    runner.truncate(63, 0)
    last = runner.decode([PROMPT[63], None])[0]
    fresh = Runner.load(tmp_path / "a").prefill(PROMPT[:64], 0)
    assert error(torch.from_numpy(last), torch.from_numpy(fresh)).within(TOLERANCES[torch.float32])
    assert len(wanted) == 63
    with pytest.raises(RunError, match="exceed the context of 64"):
        runner.decode([1, None])


@pytest.mark.parametrize("arch", ARCHS)
def test_a_call_that_fails_changes_nothing(artifacts, arch):
    """Neither an error of onnxruntime nor an interruption: the sequence goes on as if it had not been."""
    runner = Runner.load(artifacts[arch])
    session = runner._model._session
    runner.prefill(PROMPT[:100])

    class Failing:
        def io_binding(self):
            return session.io_binding()

        def run(self, *_):
            raise failure

        run_with_iobinding = run

    for failure, expected in ((MemoryError("no memory"), RunError), (KeyboardInterrupt(), KeyboardInterrupt)):
        runner._model._session = Failing()
        with pytest.raises(expected):
            runner.prefill(PROMPT[100:])
        with pytest.raises(expected):
            runner.decode([5, None])
        runner._model._session = session
        assert runner.length() == 100
    last = runner.prefill(PROMPT[100:])
    fresh = Runner.load(artifacts[arch]).prefill(PROMPT)
    assert error(torch.from_numpy(last), torch.from_numpy(fresh)).within(TOLERANCES[torch.float32])


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_to_decode(artifacts, arch):
    runner = Runner.load(artifacts[arch])
    runner.prefill([1, 2, 3])
    before = runner._cache_bytes()
    assert not runner.decode([None, None]).any() and runner.length() == 3 and runner._cache_bytes() == before


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from gptoss_export.cli import main
main(sys.argv[1:])
"""


def test_a_missing_package_is_told(artifacts, artifact):
    """Where there is no torch: one target less in the list, and a refusal for what needs it."""

    def run(*arguments):
        return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)], capture_output=True, text=True)

    done = run("targets", "--json")
    assert done.returncode == 0, done.stderr
    details = {row["target"]: row for row in json.loads(done.stdout)["targets"]}
    assert details["onnx"]["ready"] and "torch" in details["aoti"]["detail"] and not details["aoti"]["ready"]
    done = run("run", artifact, "--tokens", "1,2")
    assert done.returncode == 2 and "target aoti cannot be used here" in done.stderr
    assert run("run", artifacts["onnxruntime"], "--tokens", "1,2,3", "--max-new-tokens", "2").returncode == 0


def test_logits_and_scores(artifacts):
    runner = Runner.load(artifacts["onnxruntime"])
    rows = np.concatenate(list(runner.prefill_logits(PROMPT)))
    assert rows.shape == (len(PROMPT), PRESETS["tiny"].vocab_size) and rows.dtype == np.float32
    logs = torch.from_numpy(rows).log_softmax(-1)[:-1].gather(-1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    assert torch.allclose(torch.from_numpy(runner.score(PROMPT)), logs, atol=1e-4)
    kept = runner.generate(PROMPT, 3, stop_tokens=(), keep_logits=True)
    assert [int(row.argmax()) for row in kept.logits] == kept.tokens
    stale = runner.prefill_logits(PROMPT)
    next(stale)
    runner.reset()
    with pytest.raises(RunError, match="another call used this runner"):
        next(stale)


def test_tokens_are_drawn_as_in_torch():
    """The same tokens and log probabilities for the same logits, options, seeds and positions."""
    from gptoss_export.runtime.sampler_numpy import choose as on_host
    from gptoss_export.runtime.sampler_torch import SamplingBuffers, Scores
    from gptoss_export.runtime.sampler_torch import choose as on_device

    options = [Sampling(), Sampling(1e-46), Sampling(0.7, seed=-5), Sampling(1.3, top_k=7, seed=2**62), Sampling(0.9, top_p=0.6), Sampling(2.0, 40, 0.9, 11)]
    generator = torch.Generator().manual_seed(0)
    buffers = SamplingBuffers(len(options), torch.device("cpu"))
    buffers.set(options)
    for round_ in range(50):
        logits = 3 * torch.randn(len(options), 500, generator=generator)
        positions = torch.randint(0, 100_000, (len(options),), generator=generator)
        total = logits.logsumexp(-1)
        top = logits.argmax(-1)
        scores = Scores(logits, top, logits.amax(-1) - total, total)
        for sampled in (False, True):
            tokens, logprobs = on_device(scores, positions, buffers, sampled)
            found, found_logprobs = on_host(logits.numpy(), positions.tolist(), dict(enumerate(options)) if sampled else {})
            assert found.tolist() == tokens.tolist(), round_
            assert np.allclose(found_logprobs, logprobs.numpy(), atol=1e-5)

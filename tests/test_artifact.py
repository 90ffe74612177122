"""What an artifact holds, what is refused at load, and that a failed build leaves nothing."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch

from conftest import OPTIONS
from gptoss_export.build import BuildOptions, build
from gptoss_export.errors import ArtifactError, BuildError, LoweringError, UsageError
from gptoss_export.compiler.export import Shapes, trace
from gptoss_export.compiler.lower import lower, references
from gptoss_export.artifact.manifest import describe_file, load_manifest, save_manifest
from gptoss_export.runtime import Runner
from gptoss_export.targets import TARGETS


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "copy")


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_model(folder, **changes):
    edit(folder, model=json.loads((folder / "manifest.json").read_text())["model"] | changes)


def test_manifest_round_trip(artifact, tmp_path):
    manifest = load_manifest(artifact)
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest


OTHER_MACHINE = {"machine": "riscv64", "system": "", "gpu": None, "options": {}, "source_sha256": "", "kernels": {}}


def package(folder):
    return next(folder.glob("programs-*.pt2"))


def test_every_file_is_in_the_manifest_with_its_hash(artifact):
    manifest = load_manifest(artifact)
    files = {path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file()}
    assert files == {*manifest.files, "manifest.json"}
    assert all(describe_file(artifact / name) == spec for name, spec in manifest.files.items())


def test_weights_are_linked_and_code_holds_none(artifact, checkpoints):
    for path in checkpoints["hf"].glob("*.safetensors"):
        assert (artifact / "weights" / path.name).samefile(path)
    with zipfile.ZipFile(package(artifact)) as held:
        assert not [info for info in held.infolist() if "/weights/" in info.filename and info.file_size > 1024]
        sources = (".pkl", ".pickle", ".cpp", ".py")  # an empty source goes along (targets/aoti.py)
        assert not [info.filename for info in held.infolist() if info.filename.endswith(sources) and info.file_size]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: not found"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "schema_version is None"),
        (lambda f: edit(f, schema_version=99), "schema_version is 99"),
        (lambda f: edit(f, programs={"decode": {}}), "malformed"),
        (lambda f: edit(f, surprise=1), "malformed"),
        (lambda f: edit(f, target="abacus"), "target 'abacus'"),
        (lambda f: edit(f, archs=["sm_90"]), "artifact has code for sm_90, this machine is"),
        (lambda f: edit(f, device="cuda", archs=["sm_90"]), "CUDA GPU"),
        (lambda f: edit(f, versions={"torch": "2.4.0"}), "built with 2.4.0, found"),
        (lambda f: edit(f, versions={}), "torch is missing"),
        (lambda f: edit(f, weights={}), "is not in the manifest"),
        (lambda f: edit(f, files={}), "is not among the files"),
        (lambda f: edit(f, files={"../secret": {"bytes": 1, "sha256": ""}}), "outside of the artifact"),
        (lambda f: edit(f, device="tpu"), "device: found 'tpu'"),
        (lambda f: edit(f, archs=[]), "archs: found"),
        (lambda f: edit(f, archs=[1]), "archs: found"),
        (lambda f: edit(f, provenance=OTHER_MACHINE | {"kernels": {"sm_90": None}}), "kernels: found {'sm_90': None}, expected lists"),
        (lambda f: edit(f, provenance=OTHER_MACHINE), "machine: artifact was built on riscv64, this machine is"),
        (lambda f: edit(f, target=[]), "target: found"),
        (lambda f: edit(f, stop_tokens=["a"]), "stop_tokens"),
        (lambda f: edit(f, max_batch=-1), "max_batch"),
        (lambda f: edit(f, max_batch=99), "program decode: inputs .*tokens"),
        (lambda f: edit(f, max_batch="3"), "max_batch"),
        (lambda f: edit(f, max_context=10**9), "k_cache.1.* not of this model"),
        (lambda f: edit(f, prefill_chunks=[]), "prefill_chunks"),
        (lambda f: edit(f, prefill_chunks=[7]), "programs: found"),
        (lambda f: edit_model(f, layer_types=["full_attention"] * 4), "k_cache.0"),
        (lambda f: edit_model(f, vocab_size="512"), "vocab_size"),
        (lambda f: edit_model(f, num_hidden_layers=2), "layer_types"),
        (lambda f: package(f).unlink(), "programs-.*.pt2: missing"),
        (lambda f: package(f).write_bytes(b"short"), "programs-.*.pt2: 5 bytes, expected"),
    ],
)  # fmt: skip
def test_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(ArtifactError, match=message):
        Runner.load(copy)


def test_a_changed_byte_is_found(copy):
    for name in (package(copy).name, "tokenizer.json"):
        with (copy / name).open("r+b") as stream:
            stream.seek(1000)
            byte = stream.read(1)
            stream.seek(1000)
            stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ArtifactError) as caught:
        Runner.load(copy)
    assert f"{package(copy).name}: sha256" in str(caught.value) and "tokenizer.json: sha256" in str(caught.value)


def test_weights_that_contradict_the_manifest(copy):
    data = json.loads((copy / "manifest.json").read_text())
    weights = data["weights"]
    weights["model.norm.weight"]["parts"] = weights["lm_head.weight"]["parts"]
    weights["lm_head.weight"]["parts"] = [weights["lm_head.weight"]["parts"][0] | {"tensor": "ghost"}]
    edit(copy, weights=weights)
    with pytest.raises(ArtifactError) as caught:
        Runner.load(copy)
    assert "model.norm.weight: stored shape [512, 96], expected [96]" in str(caught.value)
    assert "ghost missing" in str(caught.value)


def test_an_older_cpu_is_refused(artifact):
    manifest, target = load_manifest(artifact), TARGETS["aoti"]
    machine = target.here("cpu").partition("-")[0]

    def problems(arch):
        files = manifest.files | {f"programs-{arch}.pt2": next(iter(manifest.files.values()))}
        return target.problems(dataclasses.replace(manifest, archs=(arch,), files=files), artifact)

    assert problems(f"{machine}-DEFAULT") == []
    assert problems("other-AVX2") != []
    if not target.here("cpu").endswith("AVX512"):
        assert problems(f"{machine}-AVX512") != []


BLOCKED = """
import sys
for name in ("triton", "transformers", "click", "rich", "gptoss_plugins", "tokenizers"):
    sys.modules[name] = None  # as if it were not installed
from gptoss_export.runtime import Runner
print(Runner.load(sys.argv[1]).generate([1, 2, 3], 5, stop_tokens=()).tokens)
assert not [name for name in sys.modules if name.startswith(("torch._inductor", "torch._dynamo", "gptoss_export.model.decoder"))]
"""


def test_runs_without_triton_transformers_and_click(artifact, runner):
    done = subprocess.run([sys.executable, "-c", BLOCKED, artifact], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(runner.generate([1, 2, 3], 5, stop_tokens=()).tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "abacus"}, "--target abacus"),
        ({"device": "tpu"}, "--device tpu"),
        ({"dtype": "float16"}, "--dtype float16"),
        ({"max_batch": 0, "prefill_chunks": (0,)}, "(?s)--max-batch 0.*--prefill-chunk 0"),
        ({"prefill_chunks": ()}, "--prefill-chunk"),
        ({"max_context": 16}, "--prefill-chunk 128: expected at most --max-context"),
        ({"max_context": 131073}, "max_position_embeddings"),
    ],
)
def test_options_are_checked_before_anything_is_made(checkpoints, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        build(checkpoints["hf"], tmp_path / "out", BuildOptions(**({"target": "aoti", "device": "cpu"} | options)))
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_built(checkpoints, tmp_path):
    with pytest.raises(BuildError, match="--arch sm_90"):
        build(checkpoints["hf"], tmp_path / "out", BuildOptions("aoti", "cpu", arch="sm_90"))
    with pytest.raises(UsageError, match="exists already"):
        build(checkpoints["hf"], tmp_path, BuildOptions("aoti", "cpu"))
    with pytest.raises(UsageError, match="not a folder"):
        build(checkpoints["hf"], tmp_path / "a" / "b", BuildOptions("aoti", "cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no cuda device to build for; choose one of sm_80"):
            build(checkpoints["hf"], tmp_path / "out", BuildOptions("aoti", "cuda"))


def test_a_failed_build_leaves_nothing(checkpoints, tmp_path, monkeypatch):
    def fail(self, programs, plan):
        next(iter(programs))
        (plan.folder / "half").write_text("written")
        raise BuildError("compiler broke")

    monkeypatch.setattr(type(TARGETS["aoti"]), "compile", fail)
    with pytest.raises(BuildError, match="compiler broke"):
        build(checkpoints["hf"], tmp_path / "out", BuildOptions("aoti", "cpu"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_build_leaves_nothing_that_loads(checkpoints, tmp_path, stop):
    command = [sys.executable, "-m", "gptoss_export", "build", checkpoints["hf"], "-o", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, stop)
    assert process.wait(timeout=120) != 0
    assert not (tmp_path / "out").exists()
    if stop == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []
    for left in tmp_path.iterdir():
        with pytest.raises(ArtifactError):
            Runner.load(left)


def test_a_build_killed_before_the_rename_does_not_load(artifact, tmp_path):
    """All is written, the manifest too, and only the rename is missing."""
    folder = shutil.copytree(artifact, tmp_path / ".out-abc.partial")
    with pytest.raises(ArtifactError, match="left behind by a build that was killed"):
        Runner.load(folder)


def test_plain_experts_are_quantized(checkpoints, tmp_path, monkeypatch, loaded):
    """The weights of a bf16 checkpoint, written anew, are those of the packed one."""
    from gptoss_export.runtime.weights import load_weights

    def compiled(self, programs, plan):
        for _ in programs:
            pass
        return []

    monkeypatch.setattr(type(TARGETS["aoti"]), "compile", compiled)
    for layout in ("hf-bf16", "original"):
        manifest = build(checkpoints[layout], tmp_path / layout, BuildOptions("aoti", "cpu"))
        weights = load_weights(manifest, tmp_path / layout, torch.device("cpu"))
        packed = load_weights(load_manifest(tmp_path / layout), tmp_path / layout, torch.device("cpu"))
        assert weights.keys() == packed.keys()
        from gptoss_export import mxfp4

        names = [i.name for i in loaded.manifest.programs["decode"].inputs]
        bound = dict(zip(names, loaded._buffers["decode"], strict=True))
        for name, value in weights.items():
            if name.endswith("_blocks"):
                scales = name.replace("_blocks", "_scales")
                assert torch.equal(mxfp4.dequantize(value, weights[scales]), mxfp4.dequantize(bound[name], bound[scales]))
            elif not name.endswith("_scales"):
                assert torch.equal(value, bound[name]), name


def test_lowering_refuses_what_nothing_implements(loaded):
    config = loaded.manifest.model
    program = trace(config, Shapes(1, 64, (8,)), torch.float32, torch.device("cpu"))["decode"]()
    implementations = dict(references())
    del implementations["sink_attention"]
    with pytest.raises(LoweringError, match="gptoss.sink_attention.default"):
        lower(program, implementations)
    lowered = lower(program, references())
    names = [node.name for node in lowered.exported.graph.nodes if node.op == "placeholder"]
    assert len(names) == len(lowered.inputs)
    for node, spec in zip((n for n in lowered.exported.graph.nodes if n.op == "placeholder"), lowered.inputs, strict=True):
        assert tuple(node.meta["val"].shape) == spec.shape and node.meta["val"].dtype == spec.dtype


def test_tracing_a_20b_takes_no_memory():
    """All programs of the true shape are traced with fake tensors: no weight is ever allocated."""
    from gptoss_export.checkpoint.synthetic import PRESETS, with_layers

    programs = trace(with_layers(PRESETS["20b"], 2), Shapes(1, 8192, (512,)), torch.bfloat16, torch.device("cpu"))
    decode = programs["decode"]()
    assert all(isinstance(n.meta["val"], torch._subclasses.FakeTensor)
               for n in decode.exported.graph.nodes if n.op == "placeholder")  # fmt: skip
    assert not decode.exported.state_dict and not decode.exported.constants


# ---- hashing beside compiling ------------------------------------------------------------------------------

HASHES = 4  # at a time


@pytest.fixture
def hashing(monkeypatch):
    """The files whose hashes were begun; a hash ends when `go` is set. In place of compiling, `act` is called then."""
    begun, first, go = [], threading.Event(), threading.Event()

    def describe(path):
        begun.append(path.name)
        first.set()
        assert go.wait(60)
        return describe_file(path)

    def compile_so(act):
        def compile_programs(self, programs, plan):
            assert first.wait(60), "no hash was begun before the programs were compiled"
            act(go)
            list(programs)
            (plan.folder / "code").write_bytes(b"code")
            return [Path("code")]

        monkeypatch.setattr(type(TARGETS["aoti"]), "compile", compile_programs)

    monkeypatch.setattr("gptoss_export.build.describe_file", describe)
    return begun, compile_so


def test_weights_are_hashed_while_programs_are_compiled(checkpoints, tmp_path, hashing):
    begun, compile_so = hashing
    compile_so(threading.Event.set)
    manifest = build(checkpoints["hf"], tmp_path / "a", BuildOptions("aoti", "cpu", **OPTIONS))
    assert {"code", "derived.safetensors"} <= set(manifest.files) and list(manifest.files) == sorted(manifest.files)
    assert all(describe_file(tmp_path / "a" / name) == spec for name, spec in manifest.files.items())
    assert {Path(name).name for name in manifest.files} <= set(begun)


def test_a_build_that_fails_does_not_hash_the_rest(checkpoints, tmp_path, hashing):
    begun, compile_so = hashing

    def fail(go):
        threading.Timer(0.5, go.set).start()
        raise BuildError("no")

    compile_so(fail)
    with pytest.raises(BuildError, match="no"):
        build(checkpoints["hf"], tmp_path / "a", BuildOptions("aoti", "cpu", **OPTIONS))
    assert list(tmp_path.iterdir()) == []
    assert len(begun) <= HASHES < len(list(checkpoints["hf"].glob("*.safetensors")))


def test_a_file_that_cannot_be_hashed(checkpoints, tmp_path, monkeypatch):
    def describe(path):
        raise OSError(f"{path.name}: disk error")

    monkeypatch.setattr("gptoss_export.build.describe_file", describe)
    monkeypatch.setattr(type(TARGETS["aoti"]), "compile", lambda self, programs, plan: list(programs) and [])
    with pytest.raises(OSError, match="derived.safetensors: disk error"):
        build(checkpoints["hf"], tmp_path / "a", BuildOptions("aoti", "cpu", **OPTIONS))
    assert list(tmp_path.iterdir()) == []

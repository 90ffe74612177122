"""`gptoss-export build`: how its options reach the build, the targets' own options, what it prints."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from cli_helpers import invoke
from weights_only import WeightsOnly, use

from gptoss_export import BuildOptions
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.cli import target_options
from gptoss_export.errors import UsageError
from gptoss_export.targets import TARGETS, options_class


@dataclass(frozen=True)
class First:
    level: Literal["low", "high"] | None = field(default=None, metadata={"help": "How much."})
    small_code: bool = field(default=False, metadata={"help": "Fewer bytes."})
    shared: int | None = field(default=None, metadata={"help": "For both."})


@dataclass(frozen=True)
class Second:
    shared: int | None = field(default=None, metadata={"help": "For both."})


@pytest.fixture
def two_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {"one": First, "two": Second}
    monkeypatch.setattr(target_options, "TARGETS", tuple(classes))
    monkeypatch.setattr(target_options, "options_class", classes.__getitem__)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[BuildOptions]:
    """The options that `build` was called with. It ends at once."""
    calls: list[BuildOptions] = []

    def build(source: object, output: object, options: BuildOptions, progress: object, sign_key: object) -> Any:
        assert sign_key is None
        calls.append(options)
        raise UsageError("recorded")

    monkeypatch.setattr("gptoss_export.building.build", build)
    return calls


def test_options_reach_the_build(given: list[BuildOptions], tmp_path: Path) -> None:
    arguments = [
        "--device",
        "cuda",
        "--arch",
        "sm_90,sm_80",
        "--dtype",
        "bfloat16",
        "--max-batch",
        3,
        "--widths",
        "1,3",
    ]
    arguments += [
        "--max-context",
        99,
        "--prefill-chunk",
        8,
        "--prefill-chunk",
        16,
        "--stop-token",
        1,
        "--stop-token",
        2,
    ]
    arguments += ["--tuned-configs", tmp_path / "a.json", "--tuned-configs", tmp_path / "b.json", "--cpu-isa", "avx2"]
    invoke("build", "checkpoint", "-o", "artifact", *arguments)
    assert given == [
        BuildOptions(
            target="aoti",
            device="cuda",
            arch="sm_90,sm_80",
            dtype="bfloat16",
            max_batch=3,
            widths=(1, 3),
            max_context=99,
            prefill_chunks=(8, 16),
            stop_tokens=(1, 2),
            tuned_configs=(tmp_path / "a.json", tmp_path / "b.json"),
            target_options=options_class("aoti")(cpu_isa="avx2"),
        )
    ]


def test_options_that_are_not_given_are_left_to_the_build(given: list[BuildOptions]) -> None:
    invoke("build", "checkpoint", "-o", "artifact")
    assert given == [BuildOptions()]


def test_help_lists_the_options_of_every_target() -> None:
    text = " ".join(invoke("build", "--help").stdout.split())
    found = [(target, option) for target in TARGETS for option in fields(options_class(target))]
    assert {"cpu_isa", "portable"} <= {option.name for _, option in found}
    for target, option in found:
        assert f"--{option.name.replace('_', '-')} " in text
        assert f"{option.metadata['help']} (target {target})" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--portable"], "--portable: is an option of target onnx, found --target aoti; leave it out"),
        (
            ["--target", "onnx", "--cpu-isa", "avx2"],
            "--cpu-isa: is an option of target aoti, found --target onnx; leave it out",
        ),
    ],
)
def test_an_option_of_another_target_is_refused(given: list[BuildOptions], arguments: list[str], message: str) -> None:
    done = invoke("build", "checkpoint", "-o", "artifact", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert given == []


def test_an_unknown_choice_is_refused(given: list[BuildOptions]) -> None:
    done = invoke("build", "checkpoint", "-o", "artifact", "--cpu-isa", "sse")
    assert done.exit_code == 2 and "'sse' is not one of 'portable', 'avx2', 'avx512'" in done.stderr
    assert given == []


def test_target_options_are_made_of_what_was_given(two_targets: None) -> None:
    chosen = target_options.chosen_target_options
    nothing = {"level": None, "small_code": None, "shared": None}
    assert chosen("one", nothing) is None
    assert chosen("one", nothing | {"level": "high", "small_code": True}) == First("high", True)
    assert chosen("two", nothing | {"shared": 3}) == Second(3)
    with pytest.raises(UsageError) as raised:
        chosen("two", {"level": "low", "small_code": True, "shared": 3})
    for name in ("--level", "--small-code"):
        assert f"{name}: is an option of target one, found --target two" in str(raised.value)
    assert "--shared" not in str(raised.value)


def test_an_option_of_two_targets_must_be_the_same(monkeypatch: pytest.MonkeyPatch, two_targets: None) -> None:
    @dataclass(frozen=True)
    class Different:
        shared: str | None = field(default=None, metadata={"help": "For both."})

    monkeypatch.setattr(target_options, "options_class", {"one": First, "two": Different}.__getitem__)
    with pytest.raises(TypeError, match="different options of one name: shared"):
        target_options.add_target_options(lambda: None)


def test_an_option_of_a_type_that_cannot_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Odd:
        names: list[str] | None = field(default=None, metadata={"help": "Names."})

    monkeypatch.setattr(target_options, "TARGETS", ("one",))
    monkeypatch.setattr(target_options, "options_class", {"one": Odd}.__getitem__)
    with pytest.raises(TypeError, match="--names: is of type"):
        target_options.add_target_options(lambda: None)


def test_json_says_what_was_built(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    use(monkeypatch, WeightsOnly())
    artifact = tmp_path / "artifact"
    done = invoke("build", checkpoints["hf"], "-o", artifact, "--max-context", 64, "--stop-token", 5, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    manifest = load_manifest(artifact)
    assert facts["settings"] == manifest.provenance.options
    assert facts["settings"]["max_context"] == 64 and facts["settings"]["stop_tokens"] == [5]
    expected = {"artifact": str(artifact), "target": "aoti", "device": "cpu", "arch": "x86_64-AVX2", "dtype": "float32"}
    assert {name: facts[name] for name in expected} == expected
    files = [path for path in artifact.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert facts["bytes"] == sum(path.stat().st_size for path in files)
    assert {"read the checkpoint", "write the weights", "hash the files"} <= facts["stages"].keys()
    assert sum(facts["stages"].values()) <= facts["seconds"]
    assert facts["peak_memory_bytes"] > facts["bytes"]
    assert facts.keys() == {*expected, "bytes", "seconds", "stages", "peak_memory_bytes", "settings", "signed"}
    assert facts["signed"] is False


def test_resolved_options_are_shown_before_the_work(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    use(monkeypatch, WeightsOnly())
    done = invoke("build", checkpoints["hf"], "-o", tmp_path / "artifact", "--max-context", 64)
    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stderr.splitlines()]
    assert ["max_context", "64"] in lines and ["prefill_chunks", "64"] in lines and ["cpu_isa", "default"] in lines
    written = next(index for index, words in enumerate(lines) if words[2:] == ["write", "the", "weights"])
    assert lines.index(["max_context", "64"]) < written
    assert done.stdout.startswith(f"{tmp_path / 'artifact'}: aoti for cpu (x86_64-AVX2) in float32, ")

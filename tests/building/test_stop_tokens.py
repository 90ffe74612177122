"""The stop tokens of an artifact: those of --stop-token, else of generation_config.json, else of config.json."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights_only import WeightsOnly, use

from gptoss_export import BuildOptions, build
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import CheckpointError, UsageError


@pytest.fixture
def checkpoint(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of its own, which a test may change, and a compiler that compiles nothing."""
    use(monkeypatch, WeightsOnly())
    return shutil.copytree(checkpoints["hf"], tmp_path / "checkpoint")


def built_with(checkpoint: Path, stop_tokens: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The stop tokens of an artifact, as its manifest holds them."""
    output = checkpoint.parent / "artifact"
    built = build(checkpoint, output, BuildOptions(max_context=64, stop_tokens=stop_tokens))
    manifest = load_manifest(output)
    assert manifest.stop_tokens == built.stop_tokens
    assert manifest.provenance.options["stop_tokens"] == list(manifest.stop_tokens)
    return manifest.stop_tokens


def generation_config(checkpoint: Path, content: object) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps(content))


def test_config_json(checkpoint: Path) -> None:
    assert json.loads((checkpoint / "config.json").read_text())["eos_token_id"] == 511
    assert built_with(checkpoint) == (511,)


@pytest.mark.parametrize(("value", "expected"), [([200, 17], (200, 17)), (9, (9,)), (None, (511,))])
def test_generation_config_json_comes_first(checkpoint: Path, value: object, expected: object) -> None:
    generation_config(checkpoint, {"eos_token_id": value})
    assert built_with(checkpoint) == expected


def test_the_option_comes_before_both(checkpoint: Path) -> None:
    generation_config(checkpoint, {"eos_token_id": [200, 17]})
    assert built_with(checkpoint, (3, 4)) == (3, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *((value, "an integer or a list") for value in ("end", [None], [], True, [True], 511.7, 511.0, {}, [[1]])),
        *((value, r"ids below vocab_size .512.") for value in (512, -1, [3, 512], 10**30)),
    ],
    ids=str,
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_what_is_no_token_is_refused_with_its_file(checkpoint: Path, file: str, value: object, message: str) -> None:
    path = checkpoint / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {"eos_token_id": value}))
    with pytest.raises(CheckpointError, match=rf"(?s)/{file}: .*eos_token_id: found .*, expected {message}"):
        built_with(checkpoint)
    assert not (checkpoint.parent / "artifact").exists()


def test_generation_config_json_that_holds_no_object(checkpoint: Path) -> None:
    generation_config(checkpoint, [1])
    with pytest.raises(CheckpointError, match=r"generation_config\.json: holds a list, expected an object"):
        built_with(checkpoint)


@pytest.mark.parametrize("token", [512, -1])
def test_a_token_outside_of_the_vocabulary(checkpoint: Path, token: int) -> None:
    with pytest.raises(UsageError, match=f"stop token {token}: expected an id below vocab_size \\(512\\)"):
        built_with(checkpoint, (3, token))


def test_numbers_of_other_libraries(checkpoint: Path) -> None:
    assert built_with(checkpoint, (np.int64(3), torch.tensor(4))) == (3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stops", [torch.tensor([3, 4]), np.array([3, 4]), [3, 4], iter([3, 4])], ids=lambda value: type(value).__name__
)
def test_sequences_of_other_libraries(checkpoint: Path, stops: Any) -> None:
    assert built_with(checkpoint, stops) == (3, 4)


@pytest.mark.parametrize("stop", [True, 1.0, "5", None, np.True_, torch.tensor(True), torch.tensor(1.5)], ids=str)
def test_what_is_no_token_is_refused(checkpoint: Path, stop: Any) -> None:
    with pytest.raises(UsageError, match=r"stop token .*: expected a whole number"):
        built_with(checkpoint, (3, stop))
    assert not (checkpoint.parent / "artifact").exists()

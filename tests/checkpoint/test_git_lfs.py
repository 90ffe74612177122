"""A checkpoint that was cloned without Git LFS holds pointers in place of large files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from weights_only import WeightsOnly, use

from gptoss_export import BuildOptions, build
from gptoss_export.artifact.files import describe_file
from gptoss_export.errors import CheckpointError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 27868174\n"
PULL = "run `git lfs pull` in the checkpoint's folder"


@pytest.fixture
def checkpoint(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use(monkeypatch, WeightsOnly())
    return shutil.copytree(checkpoints["hf"], tmp_path / "checkpoint")


def refused(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        build(checkpoint, checkpoint.parent / "artifact", BuildOptions(max_context=64))
    assert not (checkpoint.parent / "artifact").exists()
    return str(caught.value)


@pytest.mark.parametrize("count", [1, 7])
def test_pointers_in_place_of_weights_are_one_error(checkpoint: Path, count: int) -> None:
    shards = sorted(checkpoint.glob("*.safetensors"))
    for shard in shards[:count]:
        shard.write_text(POINTER)
    message = refused(checkpoint)
    assert f"{count} of 7 files of weights, such as {shards[0].name}, are pointers of Git LFS" in message
    assert message.endswith(PULL) and "\n" not in message


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "generation_config.json"])
def test_pointers_in_place_of_settings(checkpoint: Path, file: str) -> None:
    (checkpoint / file).write_text(POINTER)
    message = refused(checkpoint)
    assert f"{file}: found a pointer of Git LFS, expected the file itself; " in message and message.endswith(PULL)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pointer_in_place_of_the_tokenizer_is_copied_as_it_is(checkpoint: Path, file: str) -> None:
    (checkpoint / file).write_text(POINTER)
    artifact = checkpoint.parent / "artifact"
    manifest = build(checkpoint, artifact, BuildOptions(max_context=64))
    assert (artifact / file).read_text() == POINTER
    assert manifest.files[file] == describe_file(checkpoint / file)

"""What a query does not see changes none of its bits: old rows of a slot, a broken token behind it in its own call."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx_helpers import KINDS, PROMPT, cpu_artifacts

from gptoss_export import Runner, load
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import RunError
from gptoss_export.targets.onnx.model_cpu import GrowingModel, InPlaceModel
from gptoss_export.targets.onnx.stored_tensors import StoredTensors

FILLS = [np.nan, np.inf]
BROKEN, INTACT = 511, 510  # the embedding of the first is made NaN
TOKENS = [token for token in PROMPT if token not in (BROKEN, INTACT)]


@pytest.fixture(scope="module")
def artifacts(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cpu_artifacts(checkpoints["hf"], tmp_path_factory)


def poison(runner: Runner, slot: int, fill: float, first: int = 0) -> None:
    """Fill the rows of a slot from row `first` on."""
    model = runner.executor.model  # type: ignore[attr-defined]
    if isinstance(model, InPlaceModel):
        for cache in model._caches.values():
            cache[slot, :, first:] = fill
        return
    assert isinstance(model, GrowingModel)
    for name, cache in model._caches[slot].items():
        model._caches[slot][name] = np.concatenate(
            (cache[:, :, :first], np.full_like(cache[:, :, first:], fill)), axis=2
        )


def logits_of(runner: Runner, tokens: list[int], slot: int = 0) -> np.ndarray:
    """After every token of a prompt and of two steps."""
    rows = [block.copy() for block in runner.prefill_logits(tokens[:-2], slot)]
    for token in tokens[-2:]:
        given: list[int | None] = [None, None]
        given[slot] = token
        rows.append(runner.decode(given)[slot : slot + 1].copy())
    return np.concatenate(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_an_earlier_sequence(artifacts: dict[str, Path], kind: str) -> None:
    """A slot that held NaN or infinity gives the bits of a clean one, alone and beside a longer sequence."""
    runner = load(artifacts[kind])

    def short_beside_long(fill: float | None) -> np.ndarray:
        runner.reset()
        runner.prefill(TOKENS[:30], 0)
        if fill is not None:
            runner.truncate(9, 0)
            poison(runner, 0, fill, first=9)
        runner.truncate(9, 0)
        runner.prefill(TOKENS[:70], 1)
        return runner.decode([5, 6]).copy()

    clean, beside = logits_of(runner, TOKENS[:90]), short_beside_long(None)
    for fill in FILLS:
        poison(runner, 0, fill)
        assert np.isnan(runner.decode([5, None])[0]).any()  # these rows would spoil a query that saw them
        runner.reset(0)
        np.testing.assert_array_equal(logits_of(runner, TOKENS[:90]), clean)
        np.testing.assert_array_equal(short_beside_long(fill), beside)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours(artifacts: dict[str, Path], kind: str) -> None:
    """The bits of a sequence are the same beside another one, whatever that one holds and whichever experts it uses."""
    runner = load(artifacts[kind])

    def beside(token: int, fill: float | None = None) -> np.ndarray:
        runner.reset()
        runner.prefill(TOKENS[:9], 0)
        if fill is not None:
            poison(runner, 0, fill)
        runner.prefill(TOKENS[:70], 1)
        rows = [runner.decode([token, following]).copy() for following in TOKENS[70:73]]
        assert np.isfinite(rows[0][0]).all() == (fill is None)
        return np.stack([row[1] for row in rows])

    expected = beside(5)
    np.testing.assert_array_equal(beside(6), expected)
    for fill in FILLS:
        np.testing.assert_array_equal(beside(5, fill), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_token_spoils_none_before_it(artifacts: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Not even in its own call; truncating to before it gives the bits of a sequence that never had it."""
    folder = shutil.copytree(artifacts[kind], tmp_path / "a")
    (part,) = load_manifest(folder).weights["model.embed_tokens.weight"].parts
    item = StoredTensors(folder).initializer(part)
    assert item.data is not None
    row = item.data.length // item.shape[0]
    with (folder / part.file).open("r+b") as file:
        file.seek(item.data.offset + BROKEN * row)
        file.write(b"\xff" * row)  # NaN in every dtype
    runner = load(folder, verify_hashes=False)
    start, rest = TOKENS[:30], TOKENS[30:50]

    def run(token: int, in_a_step: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        runner.reset()
        if in_a_step:
            rows = [*runner.prefill_logits(start), runner.decode([token, None])[:1].copy()]
        else:
            rows = list(runner.prefill_logits([*start, token, *rest[:3]]))
        whole = np.concatenate(rows)
        runner.truncate(30)
        return whole[:30], whole[30:], logits_of(runner, rest)

    for in_a_step in (False, True):
        before, after, again = run(INTACT, in_a_step)
        assert np.isfinite(after).all()
        before_broken, after_broken, again_broken = run(BROKEN, in_a_step)
        assert np.isnan(after_broken).any(axis=-1).all()
        np.testing.assert_array_equal(before_broken, before)
        np.testing.assert_array_equal(again_broken, again)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_weights_that_are_changed_in_use(artifacts: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """onnxruntime reads them where they are mapped: a call names a file that was cut before it, and does not run."""
    folder = shutil.copytree(artifacts[kind], tmp_path / "a")
    runner = load(folder)
    runner.prefill(TOKENS[:5])
    path = folder / load_manifest(folder).weights["model.embed_tokens.weight"].parts[0].file
    os.truncate(path, 16)
    for call in (lambda: runner.prefill(TOKENS[5:9]), lambda: runner.decode([5, None])):
        with pytest.raises(RunError, match=r"load the artifact again") as caught:
            call()
        assert str(path) in str(caught.value)
    assert runner.length() == 5

"""What `bench` makes of its timings, and the bytes that a decode step has to read, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptoss_export import bench as module
from gptoss_export.artifact.manifest import Manifest, load_manifest
from gptoss_export.bench import bench, floor_bytes
from gptoss_export.errors import UsageError

# The tiny model: hidden 96, intermediate 64, 8 heads and 2 kv heads of 32, 8 experts of which a token takes 4.
DENSE_OF_A_LAYER = 4 * (96 + 8 + 384 * 96 + 384 + 96 * 256 + 96 + 96 + 8 * 96 + 8)
EXPERTS_OF_A_LAYER = 8 * (128 * 96 // 2 + 128 * 3 + 96 * 64 // 2 + 96 * 2) + 4 * 8 * (128 + 96)
UNEMBEDDING = 4 * (96 + 512 * 96)
INV_FREQ = 4 * 16
POSITION = 4 * 2 * 2 * 32  # bytes of a position in the caches of a layer
WINDOW = 32


@pytest.fixture
def manifest(uncompiled: Path) -> Manifest:
    return load_manifest(uncompiled)


@pytest.mark.parametrize(("batch", "reached"), [(1, 1 / 2), (2, 3 / 4), (3, 7 / 8)])
@pytest.mark.parametrize("context", [10, 300])
def test_floor(manifest: Manifest, batch: int, reached: float, context: int) -> None:
    """Of the embedding a row for each sequence, of the experts those that some token takes, of sliding layers the
    window."""
    weights = 4 * (DENSE_OF_A_LAYER + reached * EXPERTS_OF_A_LAYER) + UNEMBEDDING + INV_FREQ + batch * 4 * 96
    caches = batch * POSITION * (2 * min(context, WINDOW) + 2 * context)
    assert floor_bytes(manifest, batch, context) == pytest.approx(weights + caches)


class LoadedRunner:
    """A runner of which nothing is run."""

    load_seconds = {"check files": 0.5}  # noqa: RUF012
    executor: Any = type("Executor", (), {"kv_cache_bytes": 1000})

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def generate(self, *_: Any, **__: Any) -> None: ...


def test_measurements(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load", lambda *_, **__: LoadedRunner(manifest))
    monkeypatch.setattr(module, "read_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(
        module, "_times", lambda runner, batch, context, gpu: module._Times(0.5, 0.7 * batch, 0.01 * context)
    )
    report = bench("artifact", [1, 3], [20, 40])
    assert [(row.batch, row.context) for row in report.measurements] == [(1, 20), (3, 20), (1, 40), (3, 40)]
    for row in report.measurements:
        step = 0.01 * row.context
        assert row.prefill_tok_s == pytest.approx(row.context / 0.5)
        assert row.ttft_s == pytest.approx(0.7 * row.batch)
        assert row.decode_step_s == pytest.approx(step)
        assert row.decode_tok_s == pytest.approx(row.batch / step)
        assert row.floor_s == pytest.approx(floor_bytes(manifest, row.batch, row.context) / 1e9)
        assert row.share_of_floor == pytest.approx(row.floor_s / step)
    assert report.bandwidth == 1e9
    sizes = {name: spec.bytes for name, spec in manifest.files.items() if name.endswith(".safetensors")}
    # The files hold matrices in bfloat16, and the programs have them in float32.
    assert sum(sizes.values()) < report.weights_and_cache - 1000 < 2 * sum(sizes.values())
    assert report.startup_s["check files"] == 0.5


@pytest.mark.parametrize(
    ("batches", "contexts", "message"),
    [
        ([4], [20], "--batch 4: expected 1 to 3"),
        ([0], [20], "--batch 0: expected 1 to 3"),
        ([1], [4401], "--context 4401: expected 2 to 4400"),
        ([1], [1], "--context 1: expected 2 to 4400"),
        ([], [20], "--batch: expected one or more numbers"),
    ],
)
def test_refused(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, batches: list[int], contexts: list[int], message: str
) -> None:
    monkeypatch.setattr(module, "load", lambda *_, **__: LoadedRunner(manifest))
    with pytest.raises(UsageError, match=message):
        bench("artifact", batches, contexts)


def test_bandwidth_is_bytes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of the passes."""
    seconds = iter([4.0, 2.0, *[3.0] * 50])
    monkeypatch.setattr(module, "_seconds", lambda work, device: next(seconds))
    assert module.read_bandwidth(None) == (1 << 28) / 2

"""Loading an artifact again and again in one process: memory and the temporary folder stay as they are."""

from __future__ import annotations

import gc
import tempfile
import weakref
from pathlib import Path

import pytest

from gptoss_export import Runner, load


def mappings(*, of: str) -> int:
    """How many of this process's mappings are of such files."""
    return sum(of in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_code_is_mapped_once_for_runners_that_follow_each_other(artifact: Path) -> None:
    counts = []
    for _ in range(6):
        runner = load(artifact, verify_hashes=False)
        runner.generate([1, 2, 3], 2)
        counts.append(mappings(of=".so"))
        del runner
        gc.collect()
    assert counts[-1] == counts[1]


def test_runners_that_live_together_share_no_code(artifact: Path, loaded: Runner) -> None:
    """A program may be called from one thread at a time, and each runner from a thread of its own."""
    first, second = load(artifact, verify_hashes=False), load(artifact, verify_hashes=False)
    loaders = {
        id(runner.executor.programs[name].run.args[0]._loader)
        for runner in (first, second)
        for name in ("decode_3", "unembed_1")
    }
    assert len(loaders) == 4
    assert first.generate([1, 2, 3], 4).tokens == second.generate([1, 2, 3], 4).tokens


def test_nothing_stays_in_the_temporary_folder(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    runner = load(artifact, verify_hashes=False)
    assert list(tmp_path.iterdir()) == []
    assert len(runner.generate([1, 2, 3], 2).tokens) == 2


def test_a_dropped_runner_is_freed_at_once(artifact: Path) -> None:
    """Without a circle of references: its memory is there for the next one, and graphs go before their code."""
    runner = load(artifact)
    runner.generate([1, 2], 2, stop_tokens=())
    executor = weakref.ref(runner.executor)
    gc.collect()
    gc.disable()
    try:
        del runner
        assert executor() is None
    finally:
        gc.enable()

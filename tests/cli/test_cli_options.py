"""Options of verify, bench, run and make-checkpoint reach what does the work. Each call is ended before it works."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import invoke

import gptoss_export.bench
import gptoss_export.checkpoint.synthetic
import gptoss_export.loading
import gptoss_export.verification.verify
from gptoss_export.checkpoint import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers
from gptoss_export.errors import UsageError

Given = dict[str, Any]


@pytest.fixture
def given_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Given]:
    """Runs a command whose function is replaced; the arguments that it is called with, by name."""

    def call(module: Any, name: str, *arguments: object) -> Given:
        signature = inspect.signature(getattr(module, name))
        found: Given = {}

        def record(*args: Any, **kwargs: Any) -> None:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            found.update(bound.arguments)
            raise UsageError("recorded")

        with monkeypatch.context() as patch:
            patch.setattr(module, name, record)
            done = invoke(*arguments)
        assert done.exit_code == 2 and "recorded" in done.stderr, done.stderr
        return found

    return call


def test_verify(given_to: Callable[..., Given], tmp_path: Path) -> None:
    module = gptoss_export.verification.verify
    default = given_to(module, "verify", "verify", "a", "--checkpoint", "c")
    assert (default["artifact"], default["checkpoint"]) == (Path("a"), Path("c"))
    assert (default["oracle"], default["lengths"], default["compare_with"]) == ("transformers", None, None)
    assert default["verify_hashes"] and default["trust"] is None
    options = ("--oracle", "reference", "--lengths", "3,40", "--compare-with", "b", "--no-verify-hashes")
    found = given_to(module, "verify", "verify", "a", "--checkpoint", "c", *options)
    assert (found["oracle"], found["lengths"], found["compare_with"]) == ("reference", [3, 40], Path("b"))
    assert not found["verify_hashes"]
    trusting = given_to(module, "verify", "verify", "a", "--checkpoint", "c", "--trust", "k", "--trust", "l")
    assert trusting["trust"] == [Path("k"), Path("l")]


def test_bench(given_to: Callable[..., Given]) -> None:
    module = gptoss_export.bench
    default = given_to(module, "bench", "bench", "a")
    assert (default["batches"], default["contexts"], default["profile"]) == ([1], [1024], False)
    assert default["verify_hashes"] and default["tune_process"] and default["trust"] is None
    assert default["workload"] is None
    options = ("--batch", "1,4", "--context", "30 50", "--profile", "--no-verify-hashes", "--trust", "k")
    found = given_to(module, "bench", "bench", "a", *options)
    assert (found["artifact"], found["batches"], found["contexts"]) == (Path("a"), [1, 4], [30, 50])
    assert found["profile"] and not found["verify_hashes"]
    alone = given_to(module, "bench", "bench", "a", "--workload", "w")
    assert (alone["batches"], alone["contexts"], alone["workload"]) == ([], [], Path("w"))
    both = given_to(module, "bench", "bench", "a", "--workload", "w", "--batch", 2)
    assert (both["batches"], both["contexts"], both["workload"]) == ([2], [1024], Path("w"))
    trusting = given_to(module, "bench", "bench", "a", "--trust", "k")
    assert trusting["trust"] == [Path("k")]


def test_run(given_to: Callable[..., Given]) -> None:
    module = gptoss_export.loading
    default = given_to(module, "load", "run", "a", "--tokens", "1")
    assert (default["path"], default["verify_hashes"], default["trust"]) == (Path("a"), True, None)
    assert not given_to(module, "load", "run", "a", "--tokens", "1", "--no-verify-hashes")["verify_hashes"]
    assert given_to(module, "load", "run", "a", "--tokens", "1", "--trust", "k")["trust"] == [Path("k")]
    assert default["fixed_width"] is False
    assert given_to(module, "load", "run", "a", "--tokens", "1", "--fixed-width")["fixed_width"] is True


def test_make_checkpoint(given_to: Callable[..., Given], tmp_path: Path) -> None:
    module = gptoss_export.checkpoint.synthetic
    command = ("make-checkpoint", tmp_path / "x", "--preset")
    default = given_to(module, "write_synthetic", *command, "20b")
    assert default["folder"] == tmp_path / "x"
    assert (default["config"], default["layout"], default["seed"]) == (PRESETS["20b"], LAYOUTS["hf"], 0)
    assert default["device"].type == "cpu" and not default["tokenizer"]
    options = ("--layers", 3, "--seed", 7, "--layout", "hf", "--experts", "bf16")
    found = given_to(module, "write_synthetic", *command, "tiny", *options)
    assert (found["config"], found["layout"]) == (with_layers(PRESETS["tiny"], 3), LAYOUTS["hf-bf16"])
    assert found["seed"] == 7 and found["tokenizer"]
    original = given_to(module, "write_synthetic", *command, "tiny", "--layout", "original")
    assert original["layout"] == LAYOUTS["original"]

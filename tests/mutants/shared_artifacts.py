"""A plugin of pytest: the artifacts that tests share lie in the folder $SHARED_ARTIFACTS, and are made once for all
runs of pytest that have it. With $MAKE_SHARED_ARTIFACTS=0 a run takes what is there, and makes others for itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import artifacts

_FOLDER = Path(os.environ["SHARED_ARTIFACTS"])
_MAKE = os.environ["MAKE_SHARED_ARTIFACTS"] == "1"
_made_by_each_run = artifacts.made_once


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    root = _FOLDER / name
    if name in ("interpreted", "unseen"):  # results of the code under test
        return _made_by_each_run(tmp_path_factory, name, make)
    if not _MAKE and not (root / "made").exists():
        return _made_by_each_run(tmp_path_factory, name, make)
    root.mkdir(exist_ok=True)
    with FileLock(_FOLDER / f"{name}.lock"):
        if not (root / "made").exists():
            make(root)
            (root / "made").touch()
    return root


artifacts.made_once = _made_once

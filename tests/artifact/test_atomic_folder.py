"""Folders that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptoss_export.artifact.atomic_folder import check_new_folder, replace_folder
from gptoss_export.errors import UsageError


def test_folders_get_the_usual_permissions_and_leave_the_umask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    shared = tmp_path / "shared"
    shared.touch()
    shared.chmod(0o640)
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to all threads"))
    with replace_folder(tmp_path / "made", UsageError) as folder:
        (folder / "file").touch(mode=0o600)
        os.link(shared, folder / "shared")
    for name in (".", "file"):
        assert (tmp_path / "made" / name).stat().st_mode == (tmp_path / "plain" / name).stat().st_mode
    assert shared.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["file", "shared"]
    with pytest.raises(KeyError), replace_folder(tmp_path / "failed", UsageError):
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "plain", "shared"]


def test_a_folder_that_exists_or_has_no_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already; choose another name or remove it first"):
        check_new_folder(tmp_path, UsageError)
    with (
        pytest.raises(UsageError, match="not a folder; make it first"),
        replace_folder(tmp_path / "a" / "b", UsageError),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_a_folder_that_is_known_by_its_name(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "made", UsageError) as folder:
        assert folder.parent == tmp_path and folder.name.startswith(".made-") and folder.name.endswith(".partial")
        assert not (tmp_path / "made").exists()
    assert not folder.exists() and (tmp_path / "made").is_dir()

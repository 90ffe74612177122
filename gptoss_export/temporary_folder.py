"""Temporary folders that are removed even when their process was killed.

A folder holds a file that its process keeps locked while it lives. A killed process leaves the folder, and the lock is
free. The next process that makes a temporary folder in the same place removes what it finds free. The lock belongs to
the open file and not to a process id, so that it holds in containers and when a process id is used again."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from .errors import GptOssExportError

PREFIX = "gptoss-export-"
PARTIAL = ".partial"  # ends the name of a folder that is renamed when it is complete
LOCK = ".gptoss-export-lock"
_NAMES = (f"{PREFIX}????????", f".*-????????{PARTIAL}")  # tempfile.mkdtemp draws eight characters
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what a file system without locks answers
_ATTEMPTS = 100


class TemporaryFolder:
    """A new folder, `path`. It is removed by `remove`, at the end of a `with` block, with this object or with the
    process, and by a later process where this one is killed.

    parent  the folder that it is made in; None: the system's, which TMPDIR names
    prefix  what its name starts with
    suffix  what its name ends with

    Raises OSError where it cannot be made. On a file system without locks, a killed process leaves it for good.
    """

    def __init__(self, parent: Path | None = None, prefix: str = PREFIX, suffix: str = "") -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        remove_leftovers(parent)
        for _ in range(_ATTEMPTS):
            self.path = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent))
            try:
                lock = _new_lock(self.path)
            except (BlockingIOError, FileNotFoundError):  # another process took it for a leftover
                shutil.rmtree(self.path, ignore_errors=True)
                continue
            except BaseException:
                shutil.rmtree(self.path, ignore_errors=True)
                raise
            self._lock = lock
            self._remove = weakref.finalize(self, _remove_own, self.path, lock, os.getpid())
            return
        raise FileExistsError(errno.EEXIST, "other processes remove each new temporary folder", str(parent))

    def remove(self) -> None:
        """Remove the folder with all that is in it. What cannot be removed is left."""
        self._remove()

    def rename(self, path: Path) -> None:
        """Give the folder its name for good. Nothing removes it from then on. Raises OSError."""
        (self.path / LOCK).unlink(missing_ok=True)  # without it, the folder is nobody's leftover
        self.path.rename(path)
        if self._remove.detach() and self._lock is not None:
            os.close(self._lock)

    def __enter__(self) -> TemporaryFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def remove_leftovers(folder: Path | None = None) -> None:
    """Remove the temporary folders in `folder` that killed processes left. None: in the system's temporary folder.

    Only what is surely left over is removed: a folder with a name that this module gives, of this user, with a lock
    file that no process holds.
    """
    with suppress(OSError), os.scandir(tempfile.gettempdir() if folder is None else folder) as entries:
        for entry in entries:
            if any(fnmatchcase(entry.name, name) for name in _NAMES) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _remove_leftover(entry.path)


def check_executable(folder: Path, error: type[GptOssExportError], variable: str = "TMPDIR") -> None:
    """Raise `error` if code cannot be loaded from files in `folder`, since its file system is mounted noexec.

    variable  the environment variable that chooses the folder
    """
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise error(
            f"{folder}: its file system is mounted noexec, expected one that code can be loaded from; "
            f"set {variable} to a folder on another file system"
        )


def _new_lock(folder: Path) -> int | None:
    """The lock of a new folder, held until the file is closed; None where the file system has no locks.

    Raises BlockingIOError or FileNotFoundError where another process removes the folder.
    """
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.write(lock, _boot().encode())
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / LOCK).stat()
    except OSError as problem:
        os.close(lock)
        if problem.errno not in _NO_LOCKS:
            raise
        (folder / LOCK).unlink()
        return None
    return lock


def _remove_own(path: Path, lock: int | None, process: int) -> None:
    if os.getpid() != process:  # a fork, whose parent uses the folder
        return
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _remove_contents(folder)
        finally:
            os.close(folder)
        path.rmdir()
    if lock is not None:
        os.close(lock)


def _remove_leftover(path: str) -> None:
    """Remove the folder if it is left over. Raises OSError where it is not."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            found = os.fstat(lock)
            ours = found.st_uid == os.fstat(folder).st_uid == os.geteuid() and stat.S_ISREG(found.st_mode)
            # Some network file systems keep locks on each machine alone. A disk belongs to one machine, and what was
            # locked before it started is free.
            here = os.major(found.st_dev) != 0 or os.pread(lock, 100, 0).decode("utf-8", "replace") == _boot()
            if not ours or not here:
                return
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_contents(folder)
            Path(path).rmdir()
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _remove_contents(folder: int) -> None:
    """Remove what is in an open folder: the lock file last, so that a part that is left is still known."""
    for name in sorted(os.listdir(folder), key=lambda name: name == LOCK):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def _boot() -> str:
    """What identifies this start of this machine; nothing where the system does not say it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

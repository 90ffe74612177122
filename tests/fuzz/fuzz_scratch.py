"""The scratch folder of one case: what a case reads and writes lies in it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

_TELEMETRY = ".ses"  # onnxruntime writes it into the temporary folder when it is imported
_DEPTH = "a/b/c/d/e"  # folders around what a case sees: a name with ../../.. stays in the scratch folder


@dataclass(frozen=True)
class Scratch:
    """input: what a case reads; output: where it may write, and its current folder; temporary: its TMPDIR."""

    root: Path

    @property
    def input(self) -> Path:
        return self.root / _DEPTH / "in"

    @property
    def output(self) -> Path:
        return self.root / _DEPTH / "out"

    @property
    def temporary(self) -> Path:
        return self.root / _DEPTH / "tmp"

    @property
    def cache(self) -> Path:
        """Caches of the compilers, which may stay."""
        return self.root / "cache"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def report(self) -> Path:
        return self.control / "report.json"

    @property
    def stdout(self) -> Path:
        return self.control / "stdout"

    @property
    def stderr(self) -> Path:
        return self.control / "stderr"

    def make(self) -> None:
        for folder in (self.input, self.output, self.temporary, self.cache, self.control):
            folder.mkdir(parents=True)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """The variables that decide where a process writes without being asked to."""
        caches = ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME")
        return {"TMPDIR": str(self.temporary)} | dict.fromkeys(caches, str(self.cache))

    def files(self) -> dict[str, tuple[int, int, int]]:
        """What lies in the scratch folder, apart from `control` and `cache`: inode, size and time of each file, 0 for
        a folder."""
        found: dict[str, tuple[int, int, int]] = {}
        skipped = {self.control, self.cache}
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if Path(folder, name) not in skipped]
            for name in folders:
                found[os.path.relpath(Path(folder, name), self.root)] = (0, 0, 0)
            for name in names:
                if name == _TELEMETRY:
                    continue
                path = Path(folder, name)
                facts = path.lstat()
                found[os.path.relpath(path, self.root)] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        return found

    def relative(self, path: Path) -> str:
        """The name of a path in `files`."""
        return os.path.relpath(path, self.root)

"""The files of an artifact: size and sha256 of each, compared when the artifact is loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtifactError, raise_all


@dataclass(frozen=True)
class FileSpec:
    """A file's size in bytes and its sha256 in hexadecimal digits."""

    bytes: int
    sha256: str


def describe_file(path: Path) -> FileSpec:
    """Read a file and return its size and sha256."""
    with path.open("rb") as stream:
        return FileSpec(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


class BackgroundHashes:
    """Hashes files of a folder in threads, so that weights are hashed while programs are compiled."""

    def __init__(self, folder: Path, threads: ThreadPoolExecutor) -> None:
        self._folder, self._threads = folder, threads
        self._hashes: dict[Path, Future[FileSpec]] = {}

    def add(self, files: Iterable[Path]) -> None:
        """Begin to hash files, given relative to the folder. A file that was added before is not hashed again."""
        for name in sorted(set(files) - self._hashes.keys()):
            self._hashes[name] = self._threads.submit(describe_file, self._folder / name)

    def wait(self) -> dict[str, FileSpec]:
        """All files added so far, by name. Raises OSError where one cannot be read."""
        return {name.as_posix(): self._hashes[name].result() for name in sorted(self._hashes)}


@contextmanager
def background_hashes(folder: Path) -> Iterator[BackgroundHashes]:
    """Hashes for the files of `folder`. A few threads only: compiling needs cores too, and after an error each thread
    finishes the file that it reads."""
    threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        yield BackgroundHashes(folder, threads)
    finally:
        threads.shutdown(cancel_futures=True)


def combined_hash(files: Mapping[str, FileSpec]) -> str:
    """sha256 of the lines `<sha256>  <name>`, sorted by name, as sha256sum prints them."""
    lines = "".join(f"{spec.sha256}  {name}\n" for name, spec in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_sizes(files: Mapping[str, FileSpec], folder: Path) -> None:
    """Raise ArtifactError naming every file that is missing or has another size."""
    problems = []
    for name, spec in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif (size := path.stat().st_size) != spec.bytes:
            problems.append(f"{name}: {size} bytes, expected {spec.bytes}")
    raise_all(ArtifactError, f"{folder}: files differ from those that were built", problems)


def check_hashes(files: Mapping[str, FileSpec], folder: Path, names: Iterable[str]) -> None:
    """Read the files called `names`. Raise ArtifactError naming every one with another sha256."""
    names = list(names)
    with ThreadPoolExecutor() as pool:
        found = zip(names, pool.map(describe_file, [folder / name for name in names]), strict=True)
        problems = [
            f"{name}: sha256 {spec.sha256[:12]}..., expected {files[name].sha256[:12]}..."
            for name, spec in found
            if spec.sha256 != files[name].sha256
        ]
    raise_all(ArtifactError, f"{folder}: files differ from those that were built", problems)

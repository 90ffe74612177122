"""The files of an artifact: size and hash of each, compared when the artifact is loaded.

A file has its sha256, which a user can compare with other tools. One thread computes it at 1.4 GB/s, and several
threads copy a shard of weights to a GPU faster than that. So a large file has the BLAKE3 hash of each of its pieces
too, which is four times as quick, and loading compares these in all threads at once. BLAKE3 is a cryptographic hash:
nobody knows how to make another file with the same hashes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol

from blake3 import blake3

from ..errors import ArtifactError, raise_all

PIECE = 128 << 20  # bytes
_READ = 1 << 20  # bytes at once: fewer turns of the interpreter than with less, and they stay in a core's cache


@dataclass(frozen=True)
class FileSpec:
    """A file's size in bytes and its sha256 in hexadecimal digits.

    pieces  the BLAKE3 hashes of its pieces of PIECE bytes, the last of which may be shorter, where it has more than one
    """

    bytes: int
    sha256: str
    pieces: tuple[str, ...] = ()


def describe_file(path: Path) -> FileSpec:
    """Read a file and return its size, its sha256 and the hash of each piece."""
    whole, pieces, size = hashlib.sha256(), [blake3()], 0
    with path.open("rb", buffering=0) as stream:
        for data in _blocks(stream, -1):
            if size and size % PIECE == 0:
                pieces.append(blake3())
            whole.update(data)
            pieces[-1].update(data)
            size += len(data)
    return FileSpec(size, whole.hexdigest(), tuple(piece.hexdigest() for piece in pieces) if len(pieces) > 1 else ())


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
    """Read the files called `names`. Raise ArtifactError naming every one with another hash."""
    parts = [part for name in names for part in _parts(name, files[name])]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(lambda part: _hash(folder / part.name, part), parts)
        problems = {
            part.name: f"{part.name}: {part.kind} {digest[:12]}..., expected {part.expected[:12]}...{part.where}"
            for part, digest in zip(parts, found, strict=True)
            if digest != part.expected
        }
    raise_all(ArtifactError, f"{folder}: files differ from those that were built", list(problems.values()))


class _Part(NamedTuple):
    """What of a file is hashed at once.

    length  bytes from `start` on, -1: all that follow
    kind    the hash, "sha256" or "blake3", and the digits that are expected
    where   where the bytes are, as an error says it
    """

    name: str
    start: int
    length: int
    kind: str
    expected: str
    where: str


def _parts(name: str, spec: FileSpec) -> Iterator[_Part]:
    if not spec.pieces:
        yield _Part(name, 0, -1, "sha256", spec.sha256, "")
    for index, digest in enumerate(spec.pieces):
        start = index * PIECE
        length = -1 if index == len(spec.pieces) - 1 else PIECE
        yield _Part(name, start, length, "blake3", digest, f" (of the bytes from {start:,} on)")


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


def _hash(path: Path, part: _Part) -> str:
    """The hash of a part of a file."""
    digest: _Hash = blake3() if part.kind == "blake3" else hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        stream.seek(part.start)
        for data in _blocks(stream, part.length):
            digest.update(data)
    return digest.hexdigest()


def _blocks(stream: FileIO, length: int) -> Iterator[memoryview]:
    """The next `length` bytes of a file, -1: all that follow, in blocks. A block is overwritten by the next one."""
    buffer = memoryview(bytearray(_READ))
    while length and (count := stream.readinto(buffer[: min(_READ, length) if length > 0 else _READ])):
        yield buffer[:count]
        length -= count if length > 0 else 0

"""Packages of compiled code (.pt2): zip archives whose members are changed, with and without the right hash.

The bytes of the libraries are not changed where the hash is right: an artifact is code, and other code is another
program. See "What is promised" in docs/reliability.md.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_json import STRINGS, Bytes, byte_changes, change_bytes
from fuzz_scratch import Scratch
from fuzz_surface import Answers, Bases, Surface, link_folder, rehash, replace_bytes, run_request, wrong
from fuzz_worker import Outcome, Request, Result, Worker
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

NAMES = {name: text for name, text in STRINGS.items() if text is not None and name != "long"} | {
    "long": "x" * 5000,
    "up 12": "../" * 12 + "stray",
    "up inside": "a/../../../../stray",
    "backslash": "..\\..\\stray",
    "folder": "folder/",
    "drive": "C:/stray",
    "twin slash": "//stray",
}
KINDS = (
    "rename", "add", "drop", "twice", "empty", "garbage", "deflate", "encrypted", "link", "local name", "sizes",
    "crc", "reverse", "prefix", "comment", "offset",
)  # fmt: skip


@dataclass
class Member:
    """A member of an archive, as its two headers describe it. local: the name in front of the data."""

    name: bytes
    data: bytes
    local: bytes = b""
    flags: int = 0
    method: int = zipfile.ZIP_STORED
    mode: int = 0
    crc: int | None = None
    size: int | None = None
    shift: int = 0


@dataclass(frozen=True)
class MemberChange:
    """kind, the member, and the name that a kind needs."""

    kind: str
    member: int
    name: str = "up"


@dataclass(frozen=True)
class PackageCase:
    """rehashed: the manifest has the hash of the changed package. text: bytes of the archive's directory change, or,
    without the right hash, of all of it."""

    members: tuple[MemberChange, ...] = ()
    text: tuple[Bytes, ...] = field(default=())
    rehashed: bool = True


class Packages(Surface[PackageCase]):
    """Changed packages of the real artifact."""

    name, share = "packages", 35

    def __init__(self, bases: Bases) -> None:
        super().__init__(bases)
        self._answers = Answers(bases)
        (self._package,) = bases.artifact.glob("*.pt2")
        self._members = read_members(self._package)

    def cases(self) -> SearchStrategy[PackageCase]:
        change = st.builds(
            MemberChange,
            kind=st.sampled_from(KINDS),
            member=st.integers(0, len(self._members) - 1),
            name=st.sampled_from(list(NAMES)),
        )
        members = st.lists(change, min_size=1, max_size=2).map(tuple)
        return st.one_of(
            *[st.builds(PackageCase, members=members)] * 5,
            st.builds(PackageCase, text=byte_changes()),
            st.builds(PackageCase, text=byte_changes(), rehashed=st.just(False)),
            st.builds(PackageCase, members=members, rehashed=st.just(False)),
        )

    def unchanged(self) -> PackageCase:
        return PackageCase()

    def prepare(self, case: PackageCase, scratch: Scratch) -> Request:
        folder = link_folder(self.bases.artifact, scratch.input / "artifact")
        data = self.changed(case, scratch.root)
        replace_bytes(folder / self._package.name, data)
        if case.rehashed:
            rehash(folder, self._package.name)
        return run_request(folder)

    def changed(self, case: PackageCase, root: Path) -> bytes:
        """The bytes of the changed package."""
        if case.members:
            members = list(self._members)
            prefix = comment = b""
            for change in case.members:
                if change.kind == "prefix":
                    prefix = b"MZ" + b"\0" * 100
                elif change.kind == "comment":
                    comment = b"PK\x05\x06" + b"\0" * 18
                elif members:
                    change_members(members, change, root)
            return write_members(members, prefix, comment)
        data = self._package.read_bytes()
        start = _directory(data) if case.rehashed else 0
        for item in case.text:
            data = data[:start] + change_bytes(data[start:], item)
        return data

    def judge(self, case: PackageCase, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        same = self.changed(case, scratch.root) == self._package.read_bytes()
        if not case.rehashed and not same:
            return wrong("a changed package was run with the hash of the one that was built")
        return self._answers.judge(scratch.input / "artifact", scratch, result, worker)


def read_members(path: Path) -> list[Member]:
    with zipfile.ZipFile(path) as archive:
        return [Member(item.filename.encode(), archive.read(item)) for item in archive.infolist()]


def change_members(members: list[Member], change: MemberChange, root: Path) -> None:
    index = change.member % len(members)
    old = members[index]
    new = Member(old.name, old.data)
    name = NAMES[change.name].replace("{root}", str(root)).encode()
    inside = old.name[: old.name.rfind(b"/") + 1]
    if change.kind == "rename":
        new.name = inside + name if change.member % 2 else name
    elif change.kind == "add":
        members.insert(index, Member(inside + name if change.member % 2 else name, b"stray"))
        return
    elif change.kind == "drop":
        del members[index]
        return
    elif change.kind == "twice":
        members.insert(index, Member(old.name, old.data if change.member % 2 else b""))
        return
    elif change.kind == "reverse":
        members.reverse()
        return
    elif change.kind == "empty":
        new.data = b""
    elif change.kind == "garbage":
        new.data = b"garbage" * 50
    elif change.kind == "deflate":
        new.method = zipfile.ZIP_DEFLATED
    elif change.kind == "encrypted":
        new.flags = 1
    elif change.kind == "link":
        new.mode, new.data = 0o120777, b"/dev/zero"
    elif change.kind == "local name":
        new.local = name
    elif change.kind == "sizes":
        new.size = len(old.data) + (1 << 20 if change.member % 2 else -1)
    elif change.kind == "crc":
        new.crc = 12345
    elif change.kind == "offset":
        new.shift = 64
    members[index] = new


def write_members(members: list[Member], prefix: bytes = b"", comment: bytes = b"") -> bytes:
    """An archive of these members, each aligned to 64 bytes as torch writes them."""
    out, directory = bytearray(prefix), bytearray()
    for member in members:
        packed = member.data
        if member.method == zipfile.ZIP_DEFLATED:
            packer = zlib.compressobj(wbits=-15)
            packed = packer.compress(member.data) + packer.flush()
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        size = max(0, len(member.data) if member.size is None else member.size)
        stored = size if member.method == zipfile.ZIP_STORED else len(packed)
        local = member.local or member.name
        common = struct.pack("<HHHHIII", member.flags, member.method, 0, 0, crc, stored, size)
        start = len(out)
        padding = -(start + 30 + len(local)) % 64
        out += struct.pack("<IH", 0x04034B50, 20) + common + struct.pack("<HH", len(local), padding)
        out += local + b"\0" * padding + packed
        directory += struct.pack("<IHH", 0x02014B50, 0x031E, 20) + common
        directory += struct.pack("<HHHHHII", len(member.name), 0, 0, 0, 0, member.mode << 16, start + member.shift)
        directory += member.name
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, *[len(members)] * 2, len(directory), len(out), len(comment))
    return bytes(out + directory + end) + comment


def _directory(data: bytes) -> int:
    """Where the directory at the end of an archive begins."""
    end = data.rfind(b"PK\x05\x06")
    return int.from_bytes(data[end + 16 : end + 20], "little")

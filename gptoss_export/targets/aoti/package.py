"""The package of an arch's programs, `programs-<arch>.pt2`: its name, its members, which archs a machine runs. Where
ranks share the model, there is one for each kind of rank, `programs-<arch>-rank<first of its kind>.pt2`.

A package is a zip archive in torch's format. torch unpacks it by the names in it, wherever they lead. So a package is
read once into memory, its bytes are compared with the manifest and its members' names are checked. torch gets an
archive that is written from those members: it loads what was checked, whatever happens to the file.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

from ...artifact.description import check_description
from ...artifact.manifest import Manifest
from ...errors import ArtifactError, raise_all
from ...model.config import ModelConfig
from ...model.ranks import RankConfig
from ...values import shown
from . import cpu_isa

DESCRIPTION = "gptoss_export.json"  # the name of the description (artifact/description.py) among the extra files
ADVICE = "build the artifact again"
# The zip module raises others than its own for some damages.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, LookupError, NotImplementedError, ValueError, OverflowError, OSError)
# A folder, then the files of the format, the libraries of each program, and the extra files.
_MEMBER = re.compile(
    r"(?P<root>[\w.-]+)/("
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
    r"|data/aotinductor/(?P<program>\w+)/[\w.-]+"
    r"|extra/(?P<extra>[\w.-]+))",
    re.ASCII,
)


def package_name(arch: str, config: ModelConfig) -> str:
    """The package for an arch. Where ranks share a model, `config` is the part of one of them."""
    of_rank = f"-rank{config.program_rank}" if isinstance(config, RankConfig) else ""
    return f"programs-{arch}{of_rank}.pt2"


def runnable_arch(manifest: Manifest, current: str | None) -> str | None:
    """Which of the artifact's archs a machine of arch `current` runs: of several the one with the most instructions."""
    if current is None:
        return None
    runs = cpu_isa.runs if manifest.device == "cpu" else str.__eq__
    return max((arch for arch in manifest.archs if runs(arch, current)), key=cpu_isa.rank, default=None)


def checked_members(manifest: Manifest, folder: Path, arch: str) -> dict[str, bytes]:
    """The members of the package for `arch` by name, checked.

    Raises ArtifactError for a file that cannot be read or is not the one in the manifest, for members that do not
    belong into a package, and for code that was compiled for something else than the manifest says.
    """
    path = folder / package_name(arch, manifest.model)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error}); {ADVICE}") from None
    expected, found = manifest.files[path.name].sha256, hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ArtifactError(f"{path}: sha256 {found[:12]}..., expected {expected[:12]}...; {ADVICE}")
    members = _members(data, path)
    raise_all(
        ArtifactError, f"{path}: is no package of programs; {ADVICE}", _member_problems(members, manifest.programs)
    )
    root = next(iter(members)).partition("/")[0]
    check_description(manifest, arch, members.get(f"{root}/extra/{DESCRIPTION}"), path)
    return members


def program_of(member: str) -> str | None:
    """The program that a member belongs to, None for others."""
    found = _MEMBER.fullmatch(member)
    return found["program"] if found else None


def _members(data: bytes, path: Path) -> dict[str, bytes]:
    """The members of a package by name. They are stored and not compressed, so that they are no larger than the
    file."""
    members: dict[str, bytes] = {}
    problems = []
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for info in archive.infolist():
                if info.filename in members:
                    problems.append(f"member {shown(info.filename)}: found twice, expected once")
                elif info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size > len(data):
                    problems.append(f"member {shown(info.filename)}: is compressed or encrypted, expected a stored one")
                else:
                    members[info.filename] = archive.read(info)
    # The zip module raises other errors than its own for some damages.
    except _ZIP_ERRORS as error:
        raise ArtifactError(f"{path}: cannot be read as a package ({error}); {ADVICE}") from None
    raise_all(ArtifactError, f"{path}: is no package of programs; {ADVICE}", problems)
    return members


def _member_problems(members: Mapping[str, bytes], programs: Mapping[str, object]) -> Iterator[str]:
    matches = {name: _MEMBER.fullmatch(name) for name in members}
    yield from (f"member {shown(name)}: not a name of a package's file" for name, match in matches.items() if not match)
    found = [match for match in matches.values() if match]
    roots = {match["root"] for match in found}
    if len(roots) > 1 or roots & {".", ".."} or any(name.endswith(("/.", "/..")) for name in members):
        yield f"members in {shown(sorted(roots))}, expected one folder"
    held = {match["program"] for match in found if match["program"]}
    yield from (f"program {name}: not in the package" for name in sorted(programs.keys() - held))
    yield from (f"program {shown(name)}: not in the manifest" for name in sorted(held - programs.keys()))


def archive(members: dict[str, bytes]) -> bytes:
    """Members as an archive that torch can unpack."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()

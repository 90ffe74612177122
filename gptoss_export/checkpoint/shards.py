"""Finds the shards of a checkpoint and reads their headers: which tensors they hold, of which shape and dtype."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .. import git_lfs
from ..adapters.settings import ADAPTER_WEIGHTS
from ..errors import CheckpointError, raise_all
from ..json_file import read_object
from ..values import shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

Header = dict[str, tuple[tuple[int, ...], str]]  # shape and dtype of each tensor


def read_shards(folder: Path) -> dict[Path, Header]:
    """The headers of the shards. Raises CheckpointError naming every shard that is missing or broken.

    The shards are the files that the index names. Without an index, model.safetensors is the only shard, and where
    there is none, all safetensors files are but an adapter. Other files, such as an adapter, are left alone.
    """
    problems: list[str] = []
    index = _read_index(folder)
    paths = _paths(folder, index)
    if not paths:
        problems.append("no *.safetensors file")
    _refuse_pointers(folder, paths)
    shards: dict[Path, Header] = {}
    for path in paths:
        if not path.is_file():
            found = "is no regular file" if path.exists() else "not in the folder"
            problems.append(f"{path.name}: named by {INDEX}, {found}" if index else f"{path.name}: {found}")
            continue
        try:
            shards[path] = _header(path)
        except (SafetensorError, OSError) as error:
            problems.append(f"{path.name}: cannot be read as safetensors ({error})")
    readable = {path.name: header for path, header in shards.items()}
    problems += [
        f"{name}: {INDEX} says it is in {file}, which does not hold it"
        for name, file in index.items()
        if file in readable and name not in readable[file]
    ]
    raise_all(CheckpointError, f"{folder}: shards are missing or broken", problems)
    return shards


def read_header(path: Path) -> Header:
    """The header of one file. Raises CheckpointError where it cannot be read."""
    if not path.is_file():
        raise CheckpointError(f"{path}: not found")
    try:
        return _header(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None


def _paths(folder: Path, index: dict[str, str]) -> list[Path]:
    if index:
        return [folder / name for name in sorted(set(index.values()))]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    return [path for path in sorted(folder.glob("*.safetensors")) if path.name != ADAPTER_WEIGHTS]


def _refuse_pointers(folder: Path, paths: list[Path]) -> None:
    """Say what is wrong with a checkpoint that was cloned without its weights in one line, not one for each shard."""
    pointers = []
    for path in filter(Path.is_file, paths):
        # A file that cannot be opened is named with the broken ones.
        with suppress(OSError), path.open("rb") as stream:
            if git_lfs.is_pointer(stream.read(len(git_lfs.POINTER))):
                pointers.append(path.name)
    if pointers:
        raise CheckpointError(
            f"{folder}: {len(pointers)} of {len(paths)} files of weights, such as {pointers[0]}, are pointers of Git "
            f"LFS, not the files themselves; {git_lfs.ADVICE}"
        )


def _header(path: Path) -> Header:
    with safe_open(path, framework="pt") as shard:
        slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _read_index(folder: Path) -> dict[str, str]:
    """The file name of each tensor, from the index. Empty if the folder has no index."""
    path = folder / INDEX
    if not path.exists():
        return {}
    weight_map = read_object(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        expected = "expected an object that gives the name of a file in the folder for each tensor"
        raise CheckpointError(f"{path}: not a safetensors index (weight_map: found {shown(weight_map)}; {expected})")
    return weight_map


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", "..") and Path(value).name == value

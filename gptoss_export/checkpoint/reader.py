"""Opens a checkpoint folder and accounts for every tensor in it. Nothing is read but headers and config.

Tensors are memory-mapped by safetensors; `parameter` brings one parameter of the model into memory at a
time, which is how the build keeps its footprint flat whatever the model's size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..model import mxfp4
from ..model.config import ModelConfig, read_config
from ..errors import CheckpointError, raise_all
from .layouts import LAYOUTS, Layout, Recipe, Stored

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint. `files` tells in which shard each stored tensor lies."""

    folder: Path
    config: ModelConfig
    layout: Layout
    recipes: dict[str, Recipe]
    files: dict[str, Path]

    def stored(self, name: str) -> torch.Tensor:
        """A stored tensor by its name in the checkpoint, memory-mapped."""
        with safe_open(self.files[name], framework="pt") as shard:
            return shard.get_tensor(name)

    def parameters(self) -> Iterator[str]:
        """Names of the model's parameters that come from the checkpoint."""
        for name, recipe in self.recipes.items():
            yield from (f"{name}_blocks", f"{name}_scales") if recipe.quantize else (name,)

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter of the model, in the dtype of the checkpoint (uint8 for blocks and scales)."""
        if name in self.recipes:
            parts = [self.stored(part.name) for part in self.recipes[name].parts]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        stem, _, half = name.rpartition("_")
        return self.quantized(stem)[("blocks", "scales").index(half)]

    def quantized(self, stem: str) -> tuple[torch.Tensor, torch.Tensor]:
        """MXFP4 blocks and scales of the experts' matrix `stem`, an expert at a time."""
        (part,) = self.recipes[stem].parts
        with safe_open(self.files[part.name], framework="pt") as shard:
            rows = shard.get_slice(part.name)
            pairs = [mxfp4.quantize(rows[expert].T) for expert in range(part.shape[0])]
        return torch.stack([blocks for blocks, _ in pairs]), torch.stack([scales for _, scales in pairs])


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check `folder` and return its Checkpoint.

    Raises CheckpointError naming every tensor that is missing, unknown, duplicate, or of the wrong shape or
    dtype, and every shard that is missing or unreadable.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; expected one with config.json and *.safetensors")
    config = read_config(folder)
    shards = _shards(folder)
    names = Counter(name for tensors in shards.values() for name in tensors)
    layout = next((layout for layout in LAYOUTS.values() if layout.matches(names)), None)
    if layout is None:
        raise CheckpointError(
            f"{folder}: tensors of no known layout (such as {', '.join(sorted(names)[:3]) or 'none at all'}); "
            "expected names like model.layers.0.self_attn.q_proj.weight or block.0.attn.qkv.weight"
        )
    recipes = layout.recipes(config)
    wanted = {part.name: part for recipe in recipes.values() for part in recipe.parts}
    problems = [f"{name}: in {count} files, expected in one" for name, count in names.items() if count > 1]
    problems += [f"{name}: missing" for name in wanted if name not in names]
    problems += [f"{name}: unknown to the {layout.name} layout" for name in names if name not in wanted]
    files: dict[str, Path] = {}
    for path, tensors in shards.items():
        for name, (shape, dtype) in tensors.items():
            files[name] = path
            if name in wanted:
                problems += _mismatch(path, wanted[name], shape, dtype)
    raise_all(CheckpointError, f"{folder}: not a complete gpt-oss checkpoint (layout {layout.name})", problems)
    return Checkpoint(folder, config, layout, recipes, files)


def _mismatch(path: Path, wanted: Stored, shape: tuple[int, ...], dtype: str) -> Iterator[str]:
    if shape != wanted.shape:
        yield f"{wanted.name} ({path.name}): shape {list(shape)}, expected {list(wanted.shape)} by config.json"
    if dtype not in wanted.dtypes:
        yield f"{wanted.name} ({path.name}): dtype {dtype}, expected {' or '.join(wanted.dtypes)}"


def _shards(folder: Path) -> dict[Path, dict[str, tuple[tuple[int, ...], str]]]:
    """Shape and dtype of every tensor of every shard, from the files' headers."""
    problems: list[str] = []
    paths = sorted(folder.glob("*.safetensors"))
    index = _read_index(folder)
    problems += [f"{name}: named by {INDEX}, not in the folder" for name in sorted(set(index.values()))
                 if not (folder / name).is_file()]  # fmt: skip
    if not paths and not problems:
        problems.append("no *.safetensors file")
    shards = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as shard:
                slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
                shards[path] = {
                    name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
                }
        except (SafetensorError, OSError) as error:
            problems.append(f"{path.name}: cannot be read as safetensors ({error})")
    readable = {path.name: tensors for path, tensors in shards.items()}
    problems += [f"{name}: {INDEX} says it is in {file}, which does not hold it" for name, file in index.items()
                 if file in readable and name not in readable[file]]  # fmt: skip
    raise_all(CheckpointError, f"{folder}: shards are missing or broken", problems)
    return shards


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name to file name, empty where the folder has no index."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        if not all(isinstance(item, str) for pair in weight_map.items() for item in pair):
            raise TypeError("weight_map holds something other than names")
        return weight_map
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a safetensors index ({type(error).__name__}: {error})") from None

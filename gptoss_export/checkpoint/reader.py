"""Opens a checkpoint folder and checks every tensor in it. Opening reads config.json and the shards' headers alone.

safetensors maps the shards into memory. A checkpoint's parameters are read one at a time or one layer at a time, so
that a build needs about as much memory for a large model as for a small one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from ..errors import CheckpointError, UsageError, raise_all
from ..model.config import ModelConfig, read_config
from ..model.parameters import is_mxfp4_blocks, layer_of
from .adapter import Adapter, open_adapter
from .finite import not_finite, too_large
from .foreign import refuse_other_files, refuse_other_tensors
from .layouts import Layout, layout_of
from .layouts.hugging_face import load_from_parameters
from .layouts.layout import Recipe, Rounding, Shape, StoredTensor
from .layouts.nf4 import with_nf4
from .shards import read_shards

if TYPE_CHECKING:
    from transformers import GptOssForCausalLM


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint. `files` gives the shard of each stored tensor, `recipes` is what the layout says.

    With an adapter, the recipes merge it, and its tensors are among the files.
    """

    folder: Path
    config: ModelConfig
    layout: Layout
    recipes: dict[str, Recipe]
    files: dict[str, Path]
    adapter: Adapter | None = None

    @property
    def keeps_experts(self) -> bool:
        """Whether the experts' MXFP4 is used as stored, so that a build links the shards and writes the rest."""
        return all(recipe.convert is None for name, recipe in self.recipes.items() if is_mxfp4_blocks(name)) and any(
            map(is_mxfp4_blocks, self.recipes)
        )

    def transformers_model(self, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
        """Hugging Face's model with the weights that a build has, and with eager attention. Imports transformers."""
        load = self.layout.load_transformers if self.adapter is None else load_from_parameters
        return load(self, dtype, device)

    def stored(self, name: str) -> torch.Tensor:
        """A stored tensor by its name in the checkpoint, memory-mapped."""
        with safe_open(self.files[name], framework="pt") as shard:
            return shard.get_tensor(name)

    def parameters(self) -> Iterator[str]:
        """Names of the model's parameters that come from the checkpoint."""
        for name, recipe in self.recipes.items():
            yield from recipe.parameters(name)

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter of the model, in the dtype of the checkpoint (uint8 for MXFP4 blocks and scales).

        A parameter that a converter makes is computed again on each call, together with the others of its recipe.
        `converted_groups` computes each once.
        """
        for stem, recipe in self.recipes.items():
            if name in recipe.parameters(stem):
                return self._make(stem)[name]
        raise KeyError(name)

    def converted_groups(
        self, rounding: Rounding | None = None, computed_alone: bool = False
    ) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """All parameters, grouped by layer: the stem of a file name, such as layer-003, and tensors by name. What is
        rounded on the way is added to `rounding`.

        computed_alone  leave out those that are stored as they are

        A parameter outside of the layers is a group of its own, named as the parameter. The iterator keeps no
        reference to a group: a caller that deletes one before it takes the next holds one layer in memory.
        """
        groups: dict[str, list[str]] = {}
        for name, recipe in self.recipes.items():
            layer = layer_of(name)
            if computed_alone and recipe.convert is None:
                continue
            groups.setdefault(name if layer is None else f"layer-{layer:03}", []).append(name)
        for group, names in groups.items():
            yield group, {key: value for name in names for key, value in self._make(name, rounding).items()}

    def check_finite(
        self,
        dtype: torch.dtype = torch.float32,
        progress: Callable[[str], None] = lambda name: None,
        largest_scale: int | None = None,
    ) -> None:
        """Read what is used as stored. Raise CheckpointError naming each tensor that is not finite, and its experts.

        Floats must be finite in `dtype` too, in which the artifact computes with them, and MXFP4 weights in float32.
        Their scales must be up to `largest_scale`, if it is given.

        Tensors are read where they are mapped, one at a time, so that memory stays flat. Converters' results are
        checked when they are made. `progress` is called with the name of each parameter before it is read.
        """

        def problems() -> Iterator[str]:
            for name, recipe in self.recipes.items():
                if recipe.convert is None and not name.endswith("_blocks"):
                    progress(name)
                    for part in recipe.parts:
                        tensor = self.stored(part.name)
                        yield from not_finite(self._where(part), name, tensor, dtype)
                        if name.endswith("_scales"):
                            (blocks,) = self.recipes[f"{name.removesuffix('_scales')}_blocks"].parts
                            yield from too_large(
                                self._where(part), name, self.stored(blocks.name), tensor, largest_scale
                            )

        raise_all(CheckpointError, self._not_finite, problems())

    @property
    def _not_finite(self) -> str:
        return f"{self.folder}: weights that are not finite"

    def _where(self, part: StoredTensor) -> str:
        return f"{part.name} ({self.files[part.name].name})"

    def _make(self, stem: str, rounding: Rounding | None = None) -> dict[str, torch.Tensor]:
        """The parameters of the recipe listed under `stem`. Raises CheckpointError if converted ones are not finite."""
        recipe = self.recipes[stem]
        names = [part.name for part in recipe.parts]
        if recipe.convert is None:
            parts = [self.stored(name) for name in names]
            return {stem: torch.cat(parts) if len(parts) > 1 else parts[0]}
        with ExitStack() as stack:
            paths = dict.fromkeys(self.files[name] for name in names)
            shards = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}
            slices = [shards[self.files[name]].get_slice(name) for name in names]
            made = recipe.convert.convert(slices, rounding)
        parameters = dict(zip(recipe.parameters(stem), made, strict=True))
        where = ", ".join(map(self._where, recipe.parts))
        problems = (problem for name, tensor in parameters.items() for problem in not_finite(where, name, tensor))
        raise_all(CheckpointError, self._not_finite, problems)
        return parameters


def open_checkpoint(folder: Path, adapter: Path | None = None, experts: str | None = None) -> Checkpoint:
    """Check `folder` and return its Checkpoint.

    adapter  folder of a LoRA adapter that is merged
    experts  the format that a build has the experts' weights in, as `--experts` names it; None: what suits the layout

    Raises UsageError for a format that the experts cannot have, and CheckpointError, which names every tensor that is
    missing, unknown, stored twice, or of the wrong shape or dtype, and every shard that is missing or cannot be read.
    """
    refuse_other_files(folder)
    config = read_config(folder)
    shards = read_shards(folder)
    holders: dict[str, list[str]] = {}
    for path, tensors in shards.items():
        for name in tensors:
            holders.setdefault(name, []).append(path.name)
    found = {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}
    layout = layout_of(found)
    if layout is None:
        refuse_other_tensors(folder, found)
        raise CheckpointError(
            f"{folder}: tensors of no known layout (such as {', '.join(sorted(holders)[:3]) or 'none at all'}); "
            "expected names like model.layers.0.self_attn.q_proj.weight or block.0.attn.qkv.weight"
        )
    formats = layout.formats(config, found)
    if experts is not None and experts not in formats:
        raise UsageError(
            f"experts in {experts.upper()}: those of {folder} are {layout.experts.upper()}, "
            f"expected --experts {' or '.join(formats)} of a build"
        )
    chosen = next(iter(formats.values())) if experts is None else formats[experts]
    config = dataclasses.replace(config, experts_format=chosen.name)
    recipes = with_nf4(layout.recipes(config, found), found)
    wanted = {part.name: part for recipe in recipes.values() for part in recipe.parts}
    problems = [
        f"{name}: in {len(held)} files ({', '.join(held)}), expected in one"
        for name, held in holders.items()
        if len(held) > 1
    ]
    problems += [f"{name}: missing" for name in wanted if name not in holders]
    problems += [f"{name}: unknown to the {layout.name} layout" for name in holders if name not in wanted]
    files: dict[str, Path] = {}
    foreign: dict[str, tuple[Shape, str]] = {}
    for path, tensors in shards.items():
        for name, (shape, dtype) in tensors.items():
            files[name] = path
            mismatched = list(_mismatch(path, wanted[name], shape, dtype)) if name in wanted else []
            problems += mismatched
            if mismatched or name not in wanted:
                foreign[name] = shape, dtype
    if problems:
        refuse_other_tensors(folder, foreign)
    raise_all(CheckpointError, f"{folder}: not a complete gpt-oss checkpoint (layout {layout.name})", problems)
    if adapter is None:
        return Checkpoint(folder, config, layout, recipes, files)
    opened = open_adapter(adapter, config)
    files |= dict.fromkeys(opened.tensors, opened.file)
    return Checkpoint(folder, config, layout, opened.merged(recipes), files, opened)


def _mismatch(path: Path, wanted: StoredTensor, shape: tuple[int, ...], dtype: str) -> Iterator[str]:
    if shape != wanted.shape:
        swapped = (*wanted.shape[:-2], *wanted.shape[:-3:-1])
        hint = "; its last two dimensions are swapped: it was stored transposed" if shape == swapped else ""
        yield f"{wanted.name} ({path.name}): shape {list(shape)}, expected {list(wanted.shape)} by config.json{hint}"
    if dtype not in wanted.dtypes:
        yield f"{wanted.name} ({path.name}): dtype {dtype}, expected {' or '.join(wanted.dtypes)}"

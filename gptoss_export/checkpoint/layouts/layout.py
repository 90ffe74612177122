"""What a checkpoint layout is: which tensors a checkpoint holds, and how the model's parameters come from them.

The parameters of `gptoss_export.model` are the common form. A recipe says which stored tensors make up a
parameter. Most recipes only concatenate. A recipe with a converter computes parameters, for example MXFP4 blocks
and scales from plain matrices. A converter also goes the other way, which is how synthetic checkpoints are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch

from ...model.config import ModelConfig
from ...model.dtypes import STORED
from ...model.expert_formats import BF16, MXFP4, ExpertFormat

if TYPE_CHECKING:
    from transformers import GptOssForCausalLM

# Names of dtypes as safetensors writes them.
FLOATS = tuple(name for name, dtype in STORED.items() if "float" in dtype)
PACKED = tuple(name for name in STORED if name not in FLOATS)

Shape = tuple[int, ...]
Tensors: TypeAlias = Mapping[str, tuple[Shape, str]]  # the tensors of a checkpoint: shape and dtype by name


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that the checkpoint must hold, in one of `dtypes`."""

    name: str
    shape: Shape
    dtypes: tuple[str, ...] = FLOATS


class LazyTensor(Protocol):
    """A stored tensor whose slices are read when they are asked for. safetensors' slices and tensors are such."""

    def __getitem__(self, index: Any, /) -> torch.Tensor: ...


@dataclass
class Rounding:
    """How much weights lost that were rounded to another format."""

    errors: float = 0.0  # the sum of their squares
    weights: float = 0.0

    def add(self, exact: torch.Tensor, rounded: torch.Tensor) -> None:
        """Count some weights. Those that are not finite are an error elsewhere."""
        known = torch.isfinite(exact) & torch.isfinite(rounded)
        exact = torch.where(known, exact, 0.0).double()
        self.weights += float(exact.square().sum())
        self.errors += float((torch.where(known, rounded, 0.0) - exact).square().sum())

    @property
    def relative(self) -> float:
        """The root mean square of the errors over that of the weights."""
        return (self.errors / self.weights) ** 0.5 if self.weights else 0.0


class Converter(Protocol):
    """Computes model parameters from stored tensors, and the stored tensors from model parameters."""

    def parameters(self, name: str) -> tuple[str, ...]:
        """Names of the model parameters that a recipe listed under `name` makes."""

    def convert(self, stored: Sequence[LazyTensor], rounding: Rounding | None) -> tuple[torch.Tensor, ...]:
        """The parameters, in the order of `parameters`, from the stored tensors, in the order of the recipe's parts.

        Reads one expert at a time, so that memory stays flat. What is rounded is added to `rounding`, if
        it is asked for.

        Raises CheckpointError where the stored tensors contradict each other.
        """

    def invert(self, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The stored tensors for these parameters, both in the orders of `convert`."""


@dataclass(frozen=True)
class Recipe:
    """How parameters come from stored tensors.

    Without a converter, the parts, concatenated along dimension 0, are one parameter, stored as the model holds it.
    """

    parts: tuple[StoredTensor, ...]
    convert: Converter | None = None

    def parameters(self, name: str) -> tuple[str, ...]:
        """Names of the model parameters that this recipe, listed under `name`, makes."""
        return (name,) if self.convert is None else self.convert.parameters(name)

    def invert(self, parameters: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The stored tensors by name, for the parameters in the order of `parameters`."""
        if self.convert is not None:
            pieces: Sequence[torch.Tensor] = self.convert.invert(parameters)
        else:
            (whole,) = parameters
            pieces = whole.split([part.shape[0] for part in self.parts])
        return {part.name: piece for part, piece in zip(self.parts, pieces, strict=True)}


class ParameterSource(Protocol):
    """An opened checkpoint, as far as a layout needs it. `gptoss_export.checkpoint.Checkpoint` is one."""

    @property
    def folder(self) -> Path:
        """Where it is."""

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""

    @property
    def files(self) -> dict[str, Path]:
        """The shard of each stored tensor."""

    def converted_groups(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """All parameters of the model that come from the checkpoint, by name, grouped by layer."""


def _always_mxfp4(config: ModelConfig, tensors: Tensors) -> ExpertFormat:
    return MXFP4


@dataclass(frozen=True)
class Layout:
    """One way to store a gpt-oss model.

    name               what the project calls it, for example in the manifest
    names, experts     the values of --layout and --experts of make-checkpoint that mean this layout
    matches            whether a checkpoint with these tensors is in this layout
    recipes            the recipe of every parameter, by the parameter's name, for a checkpoint with these tensors. A
                       recipe that makes several parameters is listed under the name that they begin with. Without
                       tensors: how the layout is written
    config_json        what config.json holds in this layout
    load_transformers  takes an opened checkpoint, a dtype and a device; returns Hugging Face's model with the weights
                       that a build of the checkpoint has, and with eager attention. Imports transformers
    format             the format of the experts' weights in a build of a checkpoint with these tensors, unless another
                       one is asked for
    """

    name: str
    names: str
    experts: str
    matches: Callable[[Tensors], bool]
    recipes: Callable[[ModelConfig, Tensors], dict[str, Recipe]]
    config_json: Callable[[ModelConfig], dict[str, Any]]
    load_transformers: Callable[[ParameterSource, torch.dtype, torch.device], GptOssForCausalLM]
    format: Callable[[ModelConfig, Tensors], ExpertFormat] = _always_mxfp4

    def formats(self, config: ModelConfig, tensors: Tensors) -> dict[str, ExpertFormat]:
        """The formats that the experts' weights can have in a build, by the value of --experts. The first one is used
        unless another one is asked for."""
        first = self.format(config, tensors)
        return {first.option: first} | {other.option: other for other in (MXFP4, BF16)}


def stored(name: str, *shape: int) -> Recipe:
    """The recipe of a parameter that is one float tensor of the checkpoint."""
    return Recipe((StoredTensor(name, shape),))


class ExpertMatrix(NamedTuple):
    """One of the two weight matrices of every expert: its name in the model, its outputs and its inputs."""

    name: str
    rows: int
    columns: int


def expert_matrices(config: ModelConfig) -> tuple[ExpertMatrix, ExpertMatrix]:
    """The two weight matrices of an expert, in the order in which a token meets them."""
    return (
        ExpertMatrix("gate_up_proj", 2 * config.intermediate_size, config.hidden_size),
        ExpertMatrix("down_proj", config.hidden_size, config.intermediate_size),
    )


def mxfp4_shapes(experts: int, rows: int, columns: int) -> tuple[Shape, Shape]:
    """Shapes of the MXFP4 blocks and scales of `experts` matrices [rows, columns]."""
    blocks, scales = (tensor.shape(experts, rows, columns) for tensor in MXFP4.tensors)
    return blocks, scales

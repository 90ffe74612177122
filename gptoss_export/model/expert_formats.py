"""The formats that the weights of the experts can have in an artifact. A new format is one more entry of FORMATS, its
branch in model/expert_weights.py, and the kernels that read it.

  mxfp4   as gpt-oss is published: 4 bits, and 8 bits for 32 weights (model/mxfp4.py)
  nf4     as bitsandbytes quantizes: 4 bits, and a float32 for 64 weights of a row (model/nf4.py)
  nf4-32  the same with a float32 for 32 weights
  bf16    the matrices as they are, in the dtype of the artifact

Each of the two matrices of an expert, [rows, columns], is one to three tensors, which hold those of all experts.

Imports no torch: a manifest is checked where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MXFP4_GROUP = 32  # weights that share one scale; OCP Microscaling Formats 1.0, section 5.2
TABLE = 16  # values that 4 bits choose from


class ExpertTensor(NamedTuple):
    """One of the tensors that are a matrix of all experts.

    suffix    how the parameter's name ends, behind gate_up_proj or down_proj
    argument  what the ops call it, behind gate_up_ or down_
    columns   how many columns of the matrix an index of dimension 2 stands for; 0: the tensor is of all experts alike
    rest      the dimensions behind it
    dtype     torch's name without `torch.`; None: that of the artifact's matrices
    """

    suffix: str
    argument: str
    columns: int
    rest: tuple[int, ...]
    dtype: str | None

    def shape(self, experts: int, rows: int, columns: int) -> tuple[int, ...]:
        """The shape for `experts` matrices [rows, columns]."""
        return (experts, rows, columns // self.columns, *self.rest) if self.columns else self.rest


class ExpertFormat(NamedTuple):
    """How the matrices of the experts are stored.

    group    columns that belong together: a rank that shares the model has whole groups
    tensors  those of a matrix; the first one holds the weights or their codes
    """

    name: str
    group: int
    tensors: tuple[ExpertTensor, ...]

    @property
    def option(self) -> str:
        """The value of --experts that means it."""
        return self.name.partition("-")[0]

    def names(self, stem: str) -> tuple[str, ...]:
        """The parameters of the matrix that is named `stem`, such as model.layers.0.mlp.experts.down_proj."""
        return tuple(stem + tensor.suffix for tensor in self.tensors)

    def by_argument(self, stem: str) -> dict[str, str | None]:
        """The parameters of a matrix by what the ops call them; None for what the format does not have."""
        found = dict(zip((tensor.argument for tensor in self.tensors), self.names(stem), strict=True))
        return {argument: found.get(argument) for argument in ("weight", "scales", "table")}


def _nf4(name: str, group: int) -> ExpertFormat:
    return ExpertFormat(
        name,
        group,
        (
            ExpertTensor("_codes", "weight", 2, (), "uint8"),
            ExpertTensor("_absmax", "scales", group, (), "float32"),
            ExpertTensor("_quant_map", "table", 0, (TABLE,), "float32"),
        ),
    )


MXFP4 = ExpertFormat(
    "mxfp4",
    MXFP4_GROUP,
    (
        ExpertTensor("_blocks", "weight", MXFP4_GROUP, (MXFP4_GROUP // 2,), "uint8"),
        ExpertTensor("_scales", "scales", MXFP4_GROUP, (), "uint8"),
    ),
)
NF4, NF4_OF_32 = _nf4("nf4", 64), _nf4("nf4-32", 32)
BF16 = ExpertFormat("bf16", MXFP4_GROUP, (ExpertTensor("_weight", "weight", 1, (), None),))

FORMATS: dict[str, ExpertFormat] = {found.name: found for found in (MXFP4, NF4, NF4_OF_32, BF16)}
EXPERTS = tuple(dict.fromkeys(found.option for found in FORMATS.values()))  # the values of --experts


def largest_groups(option: str, sizes: Iterable[int]) -> ExpertFormat | None:
    """The format that --experts names, with the largest groups that divide all sizes; None where none do."""
    forms = [form for form in FORMATS.values() if form.option == option]
    wanted = tuple(sizes)
    return next((form for form in forms if not any(size % form.group for size in wanted)), None)

"""What the artifact needs memory for: weights by kind, keys and values, compiled code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ..model.dtypes import ITEM_SIZES
from ..model.kv_cache import sequence_bytes
from ..model.parameters import EMBEDDING, UNEMBEDDING, is_expert_matrix, is_expert_weight
from ..shown_text import size
from .amounts import byte_unit
from .bars import Bar, Part, draw_bars
from .page import PageTable, Picture
from .palette import Colour
from .sheet import Paper, Sheet, make_picture

if TYPE_CHECKING:
    from ..artifact.manifest import Manifest, WeightSpec


class MemoryKind(NamedTuple):
    """Memory of one kind. tensors: how many weights it is; None for what is no weight."""

    name: str
    bytes: int
    tensors: int | None
    colour: Colour


def weight_bytes(spec: WeightSpec) -> int:
    """Bytes of a weight on the device."""
    return math.prod(spec.shape) * ITEM_SIZES[spec.dtype]


def memory_kinds(manifest: Manifest) -> list[MemoryKind]:
    """The kinds that the artifact has, the largest first."""
    sizes: dict[str, list[int]] = {}
    for name, spec in manifest.weights.items():
        sizes.setdefault(_kind(name), []).append(weight_bytes(spec))
    found = [MemoryKind(kind, sum(each), len(each), Colour.BLUE) for kind, each in sizes.items()]
    batch, context = manifest.sizes.max_batch, manifest.sizes.max_context
    sequences = "1 sequence" if batch == 1 else f"{batch:,} sequences"
    cache = batch * sequence_bytes(manifest.model, context, ITEM_SIZES[manifest.dtype])
    found.append(MemoryKind(f"keys and values, {sequences} of {context:,}", cache, None, Colour.ORANGE))
    weights = set(manifest.weight_files())
    others = sum(spec.bytes for name, spec in manifest.files.items() if name not in weights)
    found.append(MemoryKind("code and other files", others, None, Colour.GREY))
    return sorted(found, key=lambda kind: -kind.bytes)


def memory_picture(manifest: Manifest) -> Picture:
    """The kinds as bars."""
    kinds = memory_kinds(manifest)
    total = sum(kind.bytes for kind in kinds)
    unit, scale = byte_unit(max(kind.bytes for kind in kinds))
    bars = [
        Bar(kind.name, (Part(kind.bytes / scale, kind.colour),), f"{size(kind.bytes)}, {_share(kind.bytes, total)}")
        for kind in kinds
    ]

    def draw(paper: Paper) -> Sheet:
        return draw_bars(paper, bars, unit)

    return make_picture(
        "memory",
        f"Memory by kind, {size(total)} in all",
        f"{len(kinds)} kinds. The largest is {kinds[0].name}: {size(kinds[0].bytes)}.",
        draw,
    )


def memory_table(manifest: Manifest) -> PageTable:
    """The kinds as a table."""
    kinds = memory_kinds(manifest)
    total = sum(kind.bytes for kind in kinds)
    rows = (
        (
            kind.name,
            "-" if kind.tensors is None else f"{kind.tensors:,}",
            f"{kind.bytes:,}",
            size(kind.bytes),
            _share(kind.bytes, total),
        )
        for kind in kinds
    )
    return PageTable("memory", ("kind", "weights", "bytes", "size", "share"), tuple(rows), numbers_from=1)


def _kind(name: str) -> str:
    if is_expert_matrix(name):
        return "experts, matrices"
    if is_expert_weight(name):
        return "experts, scales and biases"
    if ".self_attn." in name:
        return "attention"
    if name == EMBEDDING:
        return "embedding"
    if name == UNEMBEDDING[1]:
        return "unembedding"
    return "routers and norms"


def _share(part: int, total: int) -> str:
    return f"{part / total:.1%}" if total else "-"

"""The page of `inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..shown_text import size
from ..values import shown
from .layer_map import layers_picture, layers_table
from .memory_by_kind import memory_picture, memory_table
from .page import Cell, Page, PageTable, Section
from .part_sizes import sizes_picture
from .step_reads import reads_picture, reads_table

if TYPE_CHECKING:
    from ..artifact.manifest import Manifest
    from ..artifact.programs import Sizes

_LARGEST = 2**62  # a larger size is none that an artifact was built with


@dataclass(frozen=True)
class InspectTables:
    """The tables of an artifact, as the terminal shows them; `of_target`: what its target shows besides."""

    about: PageTable
    options: PageTable
    programs: PageTable
    of_target: tuple[PageTable, ...]
    files: PageTable


def inspect_page(artifact: str, manifest: Manifest, tables: InspectTables) -> Page:
    """The pictures of an artifact with its tables. artifact: its folder.

    Raises UsageError where a size is no number that a picture can have.
    """
    for name, value in (("max_context", manifest.sizes.max_context), ("widths", manifest.sizes.max_batch)):
        if value > _LARGEST:
            raise UsageError(
                f"{artifact}: sizes.{name} is {shown(value)}, expected {_LARGEST} at most to draw pictures"
            )
    training = manifest.sizes.training is not None
    sections = [
        *((Section("Programs", (), (), (tables.programs,)),) if training else _of_generation(manifest, tables)),
        _launch_configs(manifest),
        *(_of_target(table, index) for index, table in enumerate(tables.of_target)),
        Section("Artifact", (), (), (tables.about, tables.options, tables.files)),
    ]
    return Page(artifact, "gptoss-export inspect", _facts(manifest), tuple(sections))


def _of_generation(manifest: Manifest, tables: InspectTables) -> tuple[Section, ...]:
    """The sections about memory and programs of an artifact that generates."""
    reads = (
        "A step of a width reads each weight once, and of the experts those that its tokens reach where they choose at "
        "random. So more sequences cost less a token.",
    )
    return (
        Section("Memory", _memory_text(manifest), (memory_picture(manifest),), (memory_table(manifest),)),
        Section("Layers", (), (layers_picture(manifest),), (layers_table(manifest),)),
        Section("Programs", reads, (reads_picture(manifest),), (reads_table(manifest), tables.programs)),
    )


def _facts(manifest: Manifest) -> tuple[tuple[str, Cell], ...]:
    model, sizes = manifest.model, manifest.sizes
    return (
        ("target", f"{manifest.target} for {manifest.device}"),
        ("arch", manifest.arch),
        ("dtype", manifest.dtype),
        (
            "model",
            f"{model.num_hidden_layers} layers, {model.num_local_experts} experts (top {model.num_experts_per_tok})",
        ),
        _use(sizes),
        ("ranks", f"{sizes.ranks}"),
        ("files", size(sum(spec.bytes for spec in manifest.files.values()))),
    )


def _use(sizes: Sizes) -> tuple[str, Cell]:
    if sizes.training is not None:
        return "training step", f"{sizes.training.tokens:,} tokens, LoRA of rank {sizes.training.rank}"
    return "sequences", f"{sizes.max_batch:,} of up to {sizes.max_context:,} tokens"


def _memory_text(manifest: Manifest) -> tuple[str, ...]:
    shared = f"The {manifest.sizes.ranks} ranks together: " if manifest.sizes.ranks > 1 else ""
    return (
        f"{shared}Weights are counted as a device holds them. Keys and values are those that the longest sequences see "
        "in all slots: a sliding layer sees its window. Fewer are kept where the memory for them is chosen at load.",
    )


def _launch_configs(manifest: Manifest) -> Section:
    text = "The kernels of an arch use these tuned configs, and where none serves a shape the kernel's own guess."
    found = manifest.provenance.tuned_configs
    rows = tuple((arch, label) for arch, labels in found.items() for label in labels or ["the kernels' own guesses"])
    if not rows:
        return Section("Launch configs", ("The artifact has none of the project's kernels.",))
    return Section("Launch configs", (text,), tables=(PageTable("", ("arch", "tuned configs"), rows),))


def _of_target(table: PageTable, index: int) -> Section:
    picture = sizes_picture(table, f"target-{index}")
    return Section(table.title[:1].upper() + table.title[1:], (), () if picture is None else (picture,), (table,))

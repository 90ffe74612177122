"""A map of the layers: how each one attends, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.config import SLIDING
from ..model.dtypes import ITEM_SIZES
from ..model.parameters import is_expert_weight, layer_of
from ..shown_text import size
from .amounts import byte_unit, sizes
from .keys import Key, draw_keys, keys_height
from .memory_by_kind import weight_bytes
from .page import PageTable, Picture
from .palette import Colour
from .sheet import Paper, Sheet, make_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..artifact.manifest import Manifest

_HEIGHT = 84
_STRIP = 12  # the height of the row that shows how each layer attends
_LEFT, _RIGHT = 58, 12
_WIDE_BAR, _MANY = 0.8, 64  # up to so many layers there is a gap between bars


@dataclass(frozen=True)
class Layer:
    """A layer.

    sliding  whether a query sees the window alone
    seen     positions that the last query of the longest sequence sees
    kv       bytes of their keys and values
    experts  bytes of the experts' weights
    rest     bytes of the other weights
    """

    sliding: bool
    seen: int
    kv: int
    experts: int
    rest: int


def layers_of(manifest: Manifest) -> list[Layer]:
    """The layers in order."""
    model, context = manifest.model, manifest.sizes.max_context
    experts, rest = [0] * model.num_hidden_layers, [0] * model.num_hidden_layers
    for name, spec in manifest.weights.items():
        if (layer := layer_of(name)) is not None:
            (experts if is_expert_weight(name) else rest)[layer] += weight_bytes(spec)
    position = 2 * model.num_key_value_heads * model.head_dim * ITEM_SIZES[manifest.dtype]
    found = []
    for layer, kind in enumerate(model.layer_types):
        seen = min(model.sliding_window, context) if kind == SLIDING else context
        found.append(Layer(kind == SLIDING, seen, seen * position, experts[layer], rest[layer]))
    return found


def layers_picture(manifest: Manifest) -> Picture:
    """The layers as bars from left to right."""
    layers = layers_of(manifest)
    sliding = sum(layer.sliding for layer in layers)
    model = manifest.model
    return make_picture(
        "layers",
        f"Map of {len(layers)} layers",
        f"{len(layers) - sliding} layers attend to all positions, {sliding} to a window of {model.sliding_window:,}. "
        f"Each has {model.num_local_experts} experts, of which a token uses {model.num_experts_per_tok}. "
        f"Keys and values of a sequence of {manifest.sizes.max_context:,} tokens take "
        f"{size(sum(layer.kv for layer in layers))}.",
        lambda paper: _draw(paper, layers, manifest.sizes.max_context),
    )


def layers_table(manifest: Manifest) -> PageTable:
    """The layers as a table."""
    rows = (
        (
            str(index),
            "sliding" if layer.sliding else "full",
            f"{layer.seen:,}",
            size(layer.kv),
            size(layer.experts),
            size(layer.rest),
        )
        for index, layer in enumerate(layers_of(manifest))
    )
    headings = ("layer", "attention", "positions seen", "keys and values", "experts", "other weights")
    return PageTable("layers", headings, tuple(rows), numbers_from=2)


@dataclass(frozen=True)
class _Stack:
    """Bars of one colour, one for each layer; 0 for no bar. A later stack lies on the earlier ones."""

    key: Key
    values: list[int]


@dataclass(frozen=True)
class _Panel:
    title: str
    stacks: list[_Stack]


def _panels(layers: list[Layer], context: int) -> list[_Panel]:
    kinds = []
    for sliding, name, colour in ((False, "full attention", Colour.ORANGE), (True, "sliding window", Colour.TEAL)):
        if same := [layer for layer in layers if layer.sliding == sliding]:
            key = Key(f"{name}, {same[0].seen:,} positions: {size(same[0].kv)} a layer", colour)
            kinds.append(_Stack(key, [layer.kv if layer.sliding == sliding else 0 for layer in layers]))
    experts, rest = [layer.experts for layer in layers], [layer.rest for layer in layers]
    weights = [
        _Stack(Key(f"experts: {sizes(experts)} a layer", Colour.BLUE), experts),
        _Stack(Key(f"attention, router and norms: {sizes(rest)} a layer", Colour.GREY), rest),
    ]
    return [_Panel(f"Keys and values of one sequence of {context:,} tokens", kinds), _Panel("Weights", weights)]


def _draw(paper: Paper, layers: list[Layer], context: int) -> Sheet:
    panels = _panels(layers, context)
    keys = [[stack.key for stack in panel.stacks] for panel in panels]
    heights = [22 + keys_height(paper, of_panel) + _HEIGHT + 44 for of_panel in keys]
    heights[0] += _STRIP + 8
    sheet = Sheet(paper, sum(heights))
    top = 0.0
    for panel, of_panel, height in zip(panels, keys, heights, strict=True):
        sheet.text(0, top + 9, panel.title, bold=True)
        draw_keys(sheet, paper, of_panel, top + 20)
        if panel is panels[0]:
            place = (_LEFT, top + height - _HEIGHT - _STRIP - 48, paper.width - _LEFT - _RIGHT, _STRIP)
            _strip(sheet.axes(*place), panel.stacks)
        axes = sheet.axes(_LEFT, top + height - _HEIGHT - 40, paper.width - _LEFT - _RIGHT, _HEIGHT)
        _bars(axes, panel.stacks, len(layers))
        top += height
    return sheet


def _bars(axes: Axes, stacks: list[_Stack], count: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    most = max(sum(values) for values in zip(*(stack.values for stack in stacks), strict=True))
    unit, scale = byte_unit(most)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(0, 1.05 * most / scale or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g} {unit}" if value else "0"))
    axes.tick_params(length=0)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("layer", loc="right", labelpad=1)
    bottoms = [0.0] * count
    for stack in stacks:
        tops = [bottom + value / scale for bottom, value in zip(bottoms, stack.values, strict=True)]
        _one_path(axes, bottoms, tops, stack.key.colour)
        bottoms = tops


def _strip(axes: Axes, stacks: list[_Stack]) -> None:
    """A cell for each layer in the colour of its stack: a window is too small to be seen as a bar."""
    count = len(stacks[0].values)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_axis_off()
    for stack in stacks:
        _one_path(axes, [0.0] * count, [float(value > 0) for value in stack.values], stack.key.colour)


def _one_path(axes: Axes, bottoms: list[float], tops: list[float], colour: Colour) -> None:
    """A bar for each layer. They are one path, which is smaller than many."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    half = _WIDE_BAR / 2 if len(tops) <= _MANY else 0.5
    corners, codes = [], []
    for layer, (bottom, top) in enumerate(zip(bottoms, tops, strict=True)):
        if top > bottom:
            left, right = layer - half, layer + half
            corners += [(left, bottom), (left, top), (right, top), (right, bottom), (left, bottom)]
            codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    if corners:
        axes.add_patch(PathPatch(Path(corners, codes), facecolor=colour.value, linewidth=0))

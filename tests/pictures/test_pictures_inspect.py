"""The pictures of `inspect`: every byte once, the layers as they attend, what steps read, the sizes of engines."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_pages import ENGINES, PLUGINS, page_of_inspect
from parsed_page import ParsedPage, wide
from picture_facts import manifest

from gptoss_export.artifact.programs import Sizes
from gptoss_export.bench import floor_bytes
from gptoss_export.errors import UsageError
from gptoss_export.pictures.layer_map import layers_of, layers_picture
from gptoss_export.pictures.memory_by_kind import memory_kinds, memory_picture, weight_bytes
from gptoss_export.pictures.page import PageTable, html
from gptoss_export.pictures.part_sizes import sizes_picture
from gptoss_export.pictures.step_reads import reads_picture
from gptoss_export.shown_text import size


def test_every_byte_of_the_weights_is_of_one_kind() -> None:
    found = manifest()
    kinds = {kind.name: kind for kind in memory_kinds(found)}
    total = sum(map(weight_bytes, found.weights.values()))
    assert sum(kind.bytes for kind in kinds.values() if kind.tensors is not None) == total
    assert sum(kind.tensors or 0 for kind in kinds.values()) == len(found.weights)
    # 24 layers of 32 experts of 2,880 x (2 x 2,880 + 2,880) codes of 4 bits
    assert kinds["experts, matrices"].bytes == 24 * 32 * 2880 * 3 * 2880 // 2
    assert kinds["embedding"].bytes == kinds["unembedding"].bytes == 2 * 201_088 * 2880
    # keys and values of 8 heads of 64 in bfloat16, 12 full layers and 12 with a window of 128
    assert kinds["keys and values, 64 sequences of 8,192"].bytes == 64 * 2 * 8 * 64 * 2 * 12 * (8192 + 128)
    assert kinds["code and other files"].bytes == 17_200_000


def test_memory_is_drawn_to_scale() -> None:
    found = manifest(widths=(1,))
    picture = wide(memory_picture(found))
    kinds = [kind for kind in memory_kinds(found) if kind.tensors is not None and kind.bytes > 10**7]
    bars = picture.bars("blue")[: len(kinds)]
    first = bars[0][1] - bars[0][0]
    assert [(right - left) / first for left, right in bars] == pytest.approx(
        [kind.bytes / kinds[0].bytes for kind in kinds], abs=0.001
    )
    assert all(any(text.startswith(size(kind.bytes)) for text in picture.texts) for kind in kinds)


@pytest.mark.parametrize(("preset", "context"), [("20b", 8192), ("120b", 131_072), ("tiny", 16)])
def test_the_map_of_layers(preset: str, context: int) -> None:
    found = manifest(preset, (1,), context)
    layers = layers_of(found)
    assert len(layers) == found.model.num_hidden_layers
    assert [layer.sliding for layer in layers] == [kind == "sliding_attention" for kind in found.model.layer_types]
    window = found.model.sliding_window
    assert all(layer.seen == (min(window, context) if layer.sliding else context) for layer in layers)
    kinds = memory_kinds(found)
    assert sum(layer.kv for layer in layers) == next(kind.bytes for kind in kinds if kind.name.startswith("keys"))
    outside = sum(kind.bytes for kind in kinds if kind.name in ("embedding", "unembedding"))
    outside += 2 * found.model.hidden_size + 4 * found.model.head_dim // 2  # the last norm, the angles of RoPE
    weights = sum(map(weight_bytes, found.weights.values()))
    assert sum(layer.experts + layer.rest for layer in layers) + outside == weights
    table = next(
        table for section in page_of_inspect(found).sections for table in section.tables if table.title == "layers"
    )
    assert [row[1] for row in table.rows] == ["sliding" if layer.sliding else "full" for layer in layers]
    picture = wide(layers_picture(found))
    assert f"{found.model.num_local_experts} experts, of which a token uses 4" in picture.description
    assert f"Keys and values of one sequence of {context:,} tokens" in picture.texts


def test_what_a_step_reads_is_the_floor_that_bench_has() -> None:
    found = manifest()
    picture = wide(reads_picture(found))
    widths = found.sizes.widths
    totals = [floor_bytes(found, width, 8192) for width in widths]
    parts = zip(*map(picture.bars, ("blue", "grey", "orange")), strict=True)
    spans = [orange[1] - blue[0] for blue, grey, orange in parts if (blue[1], grey[1]) == (grey[0], orange[0])]
    assert [span / spans[-1] for span in spans] == pytest.approx([total / totals[-1] for total in totals], abs=0.002)
    for width, total in zip(widths, totals, strict=True):
        assert f"{size(total)}, {size(total / width)} a token" in picture.texts


def test_many_widths_and_sizes_that_nothing_was_built_with() -> None:
    page = page_of_inspect(manifest(widths=tuple(range(1, 101))))
    (picture,) = (picture for section in page.sections for picture in section.pictures if picture.name == "reads")
    assert picture.title.endswith("; the first 24 of 100 widths")
    found = replace(manifest(), sizes=Sizes((1,), 10**400, (128,)))
    with pytest.raises(UsageError, match=r"artifacts/20b: sizes.max_context is 1000+\.\.\., expected \d+ at most"):
        page_of_inspect(found)


def test_the_sizes_of_engines_and_a_table_without_sizes() -> None:
    engines, plugins = (PageTable(table.title, table.headings, tuple(table.rows)) for table in (ENGINES, PLUGINS))
    assert sizes_picture(plugins, "n") is None
    picture = wide(sizes_picture(engines, "n"))
    bars = picture.bars("blue")
    assert [right - left for left, right in bars] == pytest.approx(
        [(30 - index) / 30 * (bars[0][1] - bars[0][0]) for index in range(20)], abs=0.05
    )
    assert "0000001d, part 29" in picture.texts and "10 others" in picture.texts
    assert size(sum(1000 * (index + 1) for index in range(10))) + " in all" in picture.texts


def test_launch_configs_and_options_are_in_tables() -> None:
    page = ParsedPage(html(page_of_inspect(manifest(), (ENGINES, PLUGINS)), ""))
    cells = page.cells
    assert {"NVIDIA H200, torch 2.11.0, 0123456789ab", "the kernels' own guesses", "max_batch", "132 x 1"} <= cells
    assert len(page.pictures) == 2 * 4  # memory, layers, reads, engines
    assert {"decode_64", "prefill_2048", "choose_adjusted", "programs-sm_90.pt2"} <= cells

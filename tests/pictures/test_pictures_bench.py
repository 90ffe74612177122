"""The pictures of `bench`: bars as long as their numbers, lines through the measurements, every number in text."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from made_pages import page_of_bench
from parsed_page import ParsedPage, Shown, wide
from picture_facts import KERNELS, STARTUP, bench_report

from gptoss_export.bench import BenchReport
from gptoss_export.pictures.decode_floor import floor_picture
from gptoss_export.pictures.decode_speed import speed_over_context, speed_over_width
from gptoss_export.pictures.sheet import text_width
from gptoss_export.pictures.startup import startup_picture
from gptoss_export.pictures.step_kernels import kernels_picture


def names(report: BenchReport) -> set[str]:
    """Of the pictures on a page."""
    return {picture.name for section in page_of_bench(report).sections for picture in section.pictures}


def lines(picture: Shown, dashed: bool) -> list[list[tuple[float, float]]]:
    """The points of each line of a plot, which has a point for each number of sequences."""
    found = []
    for tag, attributes in picture.elements:
        style = attributes.get("style", "")
        points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", attributes.get("d", ""))
        if tag == "path" and len(points) == 7 and ("stroke-dasharray" in style) == dashed:
            found.append([(float(x), float(y)) for x, y in points])
    return found


@pytest.mark.parametrize(("batches", "contexts"), [((1,), (1024,)), ((1, 8, 64), (128, 1024, 8192))])
def test_a_decode_step_is_as_long_as_it_took_and_has_its_floor(
    batches: tuple[int, ...], contexts: tuple[int, ...]
) -> None:
    report = bench_report(batches, contexts)
    picture = wide(floor_picture(report.measurements))
    bars = picture.bars("blue")
    assert len(bars) == len(report.measurements)
    scale = {
        round((right - left) / row.decode_step_s, -1)
        for (left, right), row in zip(bars, report.measurements, strict=True)
    }
    assert max(scale) - min(scale) <= 20 and [left for left, _ in bars] == len(bars) * picture.across("0")
    marks = [
        float(re.findall(r"M ([\d.]+)", attributes["d"])[0])
        for tag, attributes in picture.elements
        if tag == "path" and "stroke: var(--ink); stroke-width: 2" in attributes.get("style", "")
    ]
    floors = marks[:-1]  # the last is of the key
    for (left, right), floor, row in zip(bars, floors, report.measurements, strict=True):
        assert (floor - left) / (right - left) == pytest.approx(row.share_of_floor, abs=0.01)
        text = f"{row.decode_step_s * 1e3:.3f} ms, {row.share_of_floor:.0%}, {row.decode_tok_s:,.1f} tok/s"
        assert text in picture.texts


def test_lines_over_the_width_rise_from_zero_as_the_numbers_do() -> None:
    report = bench_report(contexts=[1024])
    picture = wide(speed_over_width(report.measurements))
    (measured,), (floors,) = lines(picture, dashed=False), lines(picture, dashed=True)
    values = [row.decode_tok_s for row in report.measurements]
    allowed = [row.batch / row.floor_s for row in report.measurements]
    assert [x for x, _ in measured] == [x for x, _ in floors]
    steps = [later - earlier for (earlier, _), (later, _) in pairwise(measured)]
    assert max(steps) - min(steps) < 0.1  # each number of sequences is twice the one before
    unit = (measured[0][1] - measured[-1][1]) / (values[-1] - values[0])  # of the picture for a token a second
    zero = measured[0][1] + unit * values[0]
    for points, numbers in ((measured, values), (floors, allowed)):
        assert [(zero - y) / unit for _, y in points] == pytest.approx(numbers, abs=0.05 / unit)
    axis = [attributes for tag, attributes in picture.elements if tag == "text"]
    bottom = max(float(attributes["y"]) for attributes in axis if attributes["style"].count("var(--muted)"))
    assert zero < bottom and picture.texts.count("0") == 1
    for text in ("64", f"{values[-1]:,.0f}", "context 1,024", "measured", "what the floor allows", "sequences"):
        assert text in picture.texts


@pytest.mark.parametrize("narrow", [False, True])
def test_labels_of_contexts_do_not_overlap(narrow: bool) -> None:
    """Those without room are left out, and the last one stays."""
    contexts = [2**power for power in range(10, 18)]
    made = speed_over_context(bench_report([1, 8, 64], contexts).measurements)
    assert made is not None
    (picture,) = ParsedPage(made.narrow if narrow else made.wide).pictures
    labels = {f"{context:,}" for context in contexts}
    elements = [attributes for tag, attributes in picture.elements if tag == "text"]
    places = sorted(
        (round(float(attributes["y"])), float(attributes["x"]), text)
        for attributes, text in zip(elements, picture.texts, strict=True)
        if text in labels
    )
    assert [text for *_, text in places].count("131,072") == 3
    for (y, left, before), (below, right, after) in pairwise(places):
        half = (text_width(before, small=True) + text_width(after, small=True)) / 2
        assert y != below or right - left >= half, (before, after)


def test_which_pictures_there_are() -> None:
    assert names(bench_report([1], [1024])) == {"decode-step", "prompts", "kernels", "startup"}
    assert "speed-context" in names(bench_report([1], [128, 1024, 8192]))
    assert "speed-width" not in names(bench_report([1, 2], [1024]))
    assert names(bench_report([], [], [])) == {"startup"}


def test_what_is_left_out_is_said() -> None:
    report = bench_report(contexts=range(1024, 1124, 10))
    titles = [picture.title for section in page_of_bench(report).sections for picture in section.pictures]
    assert "Decode step beside its floor; the first 40 of 70" in titles
    assert "Decode, tokens a second over the sequences of a step; the first 6 of 10" in titles
    assert len(wide(floor_picture(report.measurements)).bars("blue")) == 40


def test_the_stages_of_a_start_follow_each_other() -> None:
    picture = wide(startup_picture(STARTUP))
    pieces = sorted(picture.bars("blue") + picture.bars("teal"))
    stages = sorted(set(pieces), key=pieces.index)  # each is once in the bar of all, and once in its own row
    assert [pieces.count(stage) for stage in stages] == [2] * len(STARTUP)
    total = stages[-1][1] - stages[0][0]
    for (left, right), seconds in zip(stages, STARTUP.values(), strict=True):
        assert (right - left) / total == pytest.approx(seconds / sum(STARTUP.values()), abs=0.002)
    assert all(after[0] == before[1] for before, after in pairwise(stages))
    assert {"2.58 s", *(f"{seconds:.2f} s" for seconds in STARTUP.values()), *STARTUP} <= set(picture.texts)


def test_kernels_and_the_rest_of_them() -> None:
    picture = wide(kernels_picture(bench_report().kernels))
    bars = picture.bars("blue")
    assert [right - left for left, right in bars] == pytest.approx(
        [us * (bars[0][1] - bars[0][0]) / KERNELS[0][2] for _, _, us in KERNELS], abs=0.05
    )
    assert {"_gate_up_pdl", "425.5 = 24 × 17.73 us, 46.9%", "255.6 us, 28.1%"} <= set(picture.texts)
    many = [(f"kernel {index}", 1, 100.0 - index) for index in range(40)]
    picture = wide(kernels_picture(bench_report(kernels=many).kernels))
    ((left, right),) = picture.bars("grey")
    first = picture.bars("blue")[0]
    rest = sum(us for _, _, us in many[14:])
    assert (right - left) / (first[1] - first[0]) == pytest.approx(rest / 100, rel=0.01)
    assert (
        "26 other kernels" in picture.texts
        and f"{rest:.1f} us, {rest / sum(us for _, _, us in many):.1%}" in picture.texts
    )


def test_the_facts_that_come_first() -> None:
    facts = dict(page_of_bench(bench_report()).facts)
    assert facts["memory bandwidth, read"] == "4.35 TB/s"
    slow = dict(page_of_bench(replace(bench_report(), bandwidth=2.34e9)).facts)
    assert slow["memory bandwidth, read"] == "2.3 GB/s"
    assert facts["GPU memory in use by all processes"] == "14.9 GB, 4.20% above"
    assert "GPU memory in use by all processes" not in dict(page_of_bench(replace(bench_report(), memory=0)).facts)

"""Prints the table of wrong and right artifacts against `verify` in Markdown: python wrong_artifacts.py [--seeds 10]

Each number is the largest deviation as a multiple of its bound. Above 1, `verify` fails the artifact. It takes about
ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from eager_verify import FEW, MANY, Rows, distance, verified
from faults import FAULTS, MODELS

from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.verification.cases import DECODED

COLUMNS = [
    (model, rows, dtype)
    for model in MODELS
    for rows in (FEW, MANY)
    for dtype in ("float32", "bfloat16")
]  # fmt: skip


def written(folder: Path, model: str, seed: int) -> Path:
    write_synthetic(folder, MODELS[model], LAYOUTS["hf"], seed, torch.device("cpu"))
    return folder


def print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def shown(values: Iterable[float], wrong: bool) -> str:
    """The smallest distance of wrong artifacts, the largest of right ones; bold where `verify` judges wrongly."""
    value = min(values) if wrong else max(values)
    text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if wrong else f"{value:.2f}"
    return text if (value > 1) == wrong else f"**{text}**"


def column(model: str, rows: Rows, dtype: str, seeds: int) -> tuple[dict[str, float], list[float]]:
    """The distances of the artifacts with each fault, and of right ones."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        checkpoint = written(root / "wrong", model, 7)
        wrong = {
            name: distance(verified(root / f"a{number}", checkpoint, rows, dtype, fault))
            for number, (name, fault) in enumerate(FAULTS.items())
        }
        right = [
            distance(verified(root / f"r{seed}", written(root / f"c{seed}", model, seed), rows, dtype))
            for seed in range(seeds)
        ]
    return wrong, right


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10, help="right artifacts in each column")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(column, *zip(*COLUMNS, strict=True), [options.seeds] * len(COLUMNS)))
    print_row("fault", *(f"{model}, {max(rows.lengths) + DECODED}, {dtype}" for model, rows, dtype in COLUMNS))
    print_row("---", *("---:" for _ in COLUMNS))
    for name in FAULTS:
        print_row(name, *(shown([wrong[name]], wrong=True) for wrong, _ in found))
    print_row(f"none, {options.seeds} seeds", *(shown(right, wrong=False) for _, right in found))


if __name__ == "__main__":
    main()

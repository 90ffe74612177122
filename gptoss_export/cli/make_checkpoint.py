"""gptoss-export make-checkpoint"""

from __future__ import annotations

from pathlib import Path

import click

from ..shown_text import size
from .errors import reports_errors
from .params import json_option
from .plain import say
from .progress import progress
from .tables import print_json


# The presets are written out here because --help must not import torch. A test compares them with the registry.
@click.command("make-checkpoint")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(["tiny", "20b", "120b"]), required=True, help="Shape of the model.")
@click.option("--layout", default="hf", show_default=True, help="Tensor names, such as hf or original.")
@click.option(
    "--experts",
    default="mxfp4",
    show_default=True,
    help="How the experts' matrices are stored, such as mxfp4 or bf16.",
)
@click.option("--layers", type=click.IntRange(min=1), help="Number of layers, instead of the preset's.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the weights.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where random numbers are drawn. The weights depend on it.",
)
@json_option
@reports_errors
def command(
    folder: Path,
    preset: str,
    layout: str,
    experts: str,
    layers: int | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Write a checkpoint with random weights to FOLDER, which must not exist.

    The same seed gives the same model in every layout. The preset tiny comes with a tokenizer of single bytes.
    """
    import torch

    from ..checkpoint.synthetic import PRESETS, layout_for, with_layers, write_synthetic
    from ..errors import UsageError

    chosen = layout_for(layout, experts)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here; use --device cpu")
    config = PRESETS[preset] if layers is None else with_layers(PRESETS[preset], layers)
    title = f"write {preset} to {folder}"
    with progress() as shown, shown.stage(title):
        write_synthetic(
            folder,
            config,
            chosen,
            seed,
            torch.device(device),
            tokenizer=preset == "tiny",
            progress=lambda done, total: shown.update(f"{title}: {done} of {total} shards"),
        )
    total = sum(path.stat().st_size for path in folder.iterdir())
    facts = {"folder": str(folder), "layout": chosen.name, "bytes": total, "seconds": sum(shown.seconds.values())}
    if as_json:
        print_json(facts)
    else:
        say(f"{folder}: {preset}, layout {chosen.name}, {size(total)}")

"""gptoss-export make-checkpoint"""

from __future__ import annotations

from pathlib import Path

import click

from .output import json_option, print_json, progress, reports_errors, size


@click.command("make-checkpoint")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(["tiny", "20b", "120b"]), required=True, help="Shape of the model.")
@click.option("--layout", type=click.Choice(["hf", "original"]), default="hf", show_default=True, help="Tensor names.")
@click.option("--experts", type=click.Choice(["mxfp4", "bf16"]), default="mxfp4", show_default=True,
              help="How the experts' matrices are stored.")  # fmt: skip
@click.option("--layers", type=click.IntRange(min=1), help="Number of layers, in place of the preset's.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
              help="Where random numbers are drawn; the values depend on it.")  # fmt: skip
@json_option
@reports_errors
def command(folder, preset, layout, experts, layers, seed, device, as_json) -> None:
    """Write a checkpoint with random weights to FOLDER, which must not exist.

    The same seed gives the same model in every layout. A tokenizer of single bytes comes with tiny.
    """
    from ..checkpoint.synthetic import PRESETS, layout_for, with_layers, write_random
    from ..errors import UsageError

    import torch  # isort: skip

    chosen = layout_for(layout, experts)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here; use --device cpu")
    config = PRESETS[preset] if layers is None else with_layers(PRESETS[preset], layers)
    with progress() as steps, steps.step(f"write {preset} to {folder}"):
        write_random(
            folder, config, chosen, seed, torch.device(device), tokenizer=preset == "tiny",
            progress=lambda done, total: steps.at(f"write {preset} to {folder}: {done} of {total} shards"),
        )  # fmt: skip
    total = sum(path.stat().st_size for path in folder.iterdir())
    facts = {"folder": str(folder), "layout": chosen.name, "bytes": total, "seconds": sum(steps.seconds.values())}
    print_json(facts) if as_json else click.echo(f"{folder}: {preset}, layout {chosen.name}, {size(total)}")

"""gptoss-export tune"""

from __future__ import annotations

import os
from pathlib import Path

import click

from .output import check_parent, json_option, print_json, print_table, progress, reports_errors


@click.command("tune")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="Table to write; what one of the same GPU, torch and Triton holds already is kept, but for what is measured again.")  # fmt: skip
@click.option("--max-batch", type=int, default=1, show_default=True, help="As for `build`.")
@click.option("--max-context", type=int, default=4096, show_default=True, help="As for `build`.")
@click.option("--prefill-chunk", "prefill_chunks", type=int, multiple=True, help="As for `build`.  [default: 128]")
@click.option("--only", multiple=True, help="Tune the kernels of this name alone, such as attention; may be repeated.")
@json_option
@reports_errors
def command(checkpoint, output, max_batch, max_context, prefill_chunks, only, as_json) -> None:
    """Measure how the kernels of CHECKPOINT, of which only config.json is read, are best cut on this machine's GPU.

    The table is for `build --table`.
    """
    from ..model.config import read_config
    from ..errors import UsageError, raise_all
    from ..compiler.export import Shapes
    from ..kernels.tuned_configs import CutTable, read_table, write_table
    from ..targets.target import gpu_arch

    chunks = prefill_chunks or (max(1, min(128, max_context)),)
    numbers = {"--max-batch": (max_batch,), "--max-context": (max_context,), "--prefill-chunk": chunks}
    problems = [f"{option} {value}: expected 1 or more" for option, values in numbers.items() for value in values if value < 1]
    if max(chunks) > max_context:
        problems.append(f"--prefill-chunk {max(chunks)}: expected at most --max-context ({max_context})")
    raise_all(UsageError, "options that cannot be tuned for", problems)
    check_parent("--output", output)
    if not os.access(output.absolute().parent, os.W_OK):  # rather than after the first measurement
        raise UsageError(f"--output {output}: its folder cannot be written to")
    config = read_config(checkpoint)
    if max_context > config.max_position_embeddings:
        raise UsageError(f"--max-context {max_context}: the model has {config.max_position_embeddings} positions")
    arch = gpu_arch()
    if arch is None:
        raise UsageError("tune: torch finds no CUDA GPU here; cuts are measured on a GPU of the kind that they are for")

    import torch  # isort: skip

    from ..compiler.lower import compiler
    from ..tuning import tune

    table = CutTable(arch, torch.cuda.get_device_name(), {"torch": torch.__version__, "triton": compiler()}, ())
    if output.exists():
        known = read_table(output)
        if (known.arch, known.gpu, known.versions) != (table.arch, table.gpu, table.versions):
            raise UsageError(f"--output {output}: holds what was measured on {known.label}; name another file for "
                             f"{table.label}")  # fmt: skip
        table = known
    results = []
    with progress() as steps:
        for result in tune(config, Shapes(max_batch, max_context, tuple(sorted(set(chunks)))), arch, only, steps):
            results.append(result)
            table = table.with_entries([result.entry] if result.entry else [])
            write_table(table, output)  # each time, so that what was measured survives an interruption
    for result in results:
        for refused in result.refused:
            if refused.wrong or result.entry is None:
                click.echo(f"warning: {result.cut}: {refused}", err=True)
    if as_json:
        print_json({"table": str(output), "arch": arch, "results": [_as_json(result) for result in results]})
        return
    print_table(_shown(results, f"{output}: {arch}, {table.gpu}"))


def _as_json(result):
    entry = vars(result.entry) if result.entry else {"name": result.cut.name, "shape": dict(result.cut.shape), "tiles": None}
    refused = [{"cut": str(refused), "wrong_results": refused.wrong} for refused in result.refused]
    return entry | {"tried": result.tried, "refused": refused}


def _shown(results, title):
    from rich.table import Table

    table = Table("kernel", "shape", "us", "own guess us", "gain", "tried", "refused", title=title)
    for result in results:
        entry = result.entry
        shape = ", ".join(f"{name} {value}" for name, value in result.cut.shape.items() if name != "dtype")
        times = (f"{entry.us:.1f}", f"{entry.default_us:.1f}", f"{entry.default_us / entry.us - 1:.1%}") if entry else ("-",) * 3
        table.add_row(result.cut.name, shape, *times, str(result.tried), str(len(result.refused)))
    return table

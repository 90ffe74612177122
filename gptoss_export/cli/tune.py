"""gptoss-export tune"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..model.expert_formats import EXPERTS
from .errors import reports_errors
from .params import Integers, check_new_file, json_option
from .plain import say
from .progress import progress
from .tables import make_table, print_json, print_tables

if TYPE_CHECKING:
    from rich.table import Table

    from ..kernels.tuned_configs import TunedConfigs
    from ..tuning.tune import Tuned


@click.command("tune")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="File to write. If it exists (same GPU, torch and Triton), new measurements are merged into it.",
)
@click.option("--max-batch", type=int, default=1, show_default=True, help="As for `build`.")
@click.option("--widths", type=Integers(), help="As for `build`.")
@click.option("--max-context", type=int, default=4096, show_default=True, help="As for `build`.")
@click.option(
    "--prefill-chunk",
    "prefill_chunks",
    type=int,
    multiple=True,
    help="As for `build`.  [default: those of a build for cuda]",
)
@click.option("--tensor-parallel", type=int, default=1, show_default=True, help="As for `build`.")
@click.option("--expert-parallel", is_flag=True, help="As for `build`.")
@click.option("--experts", type=click.Choice(EXPERTS), default="mxfp4", show_default=True, help="As for `build`.")
@click.option(
    "--only", multiple=True, metavar="KERNEL", help="Tune this kernel only, such as attention. May be repeated."
)
@json_option
@reports_errors
def command(
    checkpoint: Path,
    output: Path,
    max_batch: int,
    widths: list[int] | None,
    max_context: int,
    prefill_chunks: tuple[int, ...],
    tensor_parallel: int,
    expert_parallel: bool,
    experts: str,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Find the fastest launch configs on this GPU.

    Times the kernels that a build of CHECKPOINT launches, and writes a file for `gptoss-export build --tuned-configs`.
    Only config.json of CHECKPOINT is read.
    """
    from dataclasses import replace

    from ..artifact.programs import default_widths
    from ..build_sizes import context_problems, resolve_sizes, with_ranks
    from ..errors import UsageError, raise_all
    from ..kernels.tuned_configs import write_tuned_configs
    from ..model.config import read_config
    from ..model.expert_formats import largest_groups
    from ..model.ranks import division_problems
    from ..targets.base_compiler import default_prefill_chunks
    from ..targets.gpu import current_gpu_arch

    sizes, problems = resolve_sizes(
        max_batch,
        None if widths is None else tuple(widths),
        max_context,
        prefill_chunks or None,
        default_widths,
        default_prefill_chunks("cuda"),
    )
    sizes, of_ranks = with_ranks(sizes, tensor_parallel, expert_parallel)
    raise_all(UsageError, "options that cannot be tuned for", [*problems, *of_ranks])
    check_new_file("--output", output, checkpoint)
    config = read_config(checkpoint)
    form = largest_groups(experts, (config.hidden_size, config.intermediate_size)) or config.expert_format
    config = replace(config, experts_format=form.name)
    undivided = division_problems(config, sizes.sharing)
    unfit = [*context_problems(sizes, config), *(f"--tensor-parallel {sizes.ranks}: {line}" for line in undivided)]
    raise_all(UsageError, "options that do not fit the checkpoint", unfit)
    arch = current_gpu_arch()
    if arch is None:
        raise UsageError("tune: torch finds no CUDA GPU here; run it on a GPU of the kind that you build for")

    from ..tuning.tune import tune

    configs = _open(output, arch)
    results = []
    with progress() as shown:
        for result in tune(config, sizes, arch, only, shown):
            results.append(result)
            configs = configs.with_entries([result.entry] if result.entry else [])
            write_tuned_configs(configs, output)  # each time, so that an interruption loses one kernel only
    for result in results:
        for refused in result.refused:
            if refused.wrong or result.entry is None:
                say(f"warning: {result.space}: {refused}", err=True)
    if as_json:
        rows = [_json(result) for result in results]
        print_json({"tuned_configs": str(output), "arch": arch, "results": rows})
        return
    print_tables([_table(results, f"{output}: {arch}, {configs.gpu}")])


def _open(output: Path, arch: str) -> TunedConfigs:
    """The tuned configs in `output`, which may not exist. Raises UsageError for those of another GPU or version."""
    import torch

    from ..compat.versions import installed
    from ..errors import UsageError
    from ..kernels.tuned_configs import TunedConfigs, read_tuned_configs

    triton = installed("triton")
    if triton is None:
        raise UsageError("tune: triton is not installed; run: pip install 'gptoss-export[cuda]'")
    new = TunedConfigs(arch, torch.cuda.get_device_name(), {"torch": torch.__version__, "triton": triton}, ())
    if not output.exists():
        return new
    known = read_tuned_configs(output)
    if (known.arch, known.gpu, known.versions) != (new.arch, new.gpu, new.versions):
        raise UsageError(
            f"--output {output}: holds measurements of {known.label}; expected {new.gpu}, torch {torch.__version__}, "
            f"triton {triton}; name another file"
        )
    return known


def _json(result: Tuned) -> dict[str, Any]:
    space, entry = result.space, result.entry
    measured = vars(entry) if entry else {"name": space.name, "shape": dict(space.shape), "config": None}
    refused = [{"config": str(refused), "wrong_results": refused.wrong} for refused in result.refused]
    return measured | {"tried": result.tried, "refused": refused}


def _table(results: Sequence[Tuned], title: str) -> Table:
    rows = []
    for result in results:
        entry, space = result.entry, result.space
        shape = ", ".join(f"{name} {value}" for name, value in space.shape.items() if name != "dtype")
        times = ("-", "-", "-")
        if entry is not None:
            times = (f"{entry.us:.1f}", f"{entry.default_us:.1f}", f"{entry.default_us / entry.us - 1:.1%}")
        rows.append((space.name, shape, *times, str(result.tried), str(len(result.refused))))
    headings = ("kernel", "shape", "us", "own guess us", "faster by", "tried", "refused")
    return make_table(headings, rows, title, numbers_from=2)

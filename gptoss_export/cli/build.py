"""gptoss-export build"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import click

from .output import json_option, print_json, progress, reports_errors, size


@click.command("build")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--target", default="aoti", show_default=True, help="What to compile to; see `gptoss-export targets`.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--arch", help="Machine code to build, such as sm_90, or several: sm_90,sm_80; default: this machine's.")
@click.option("--cpu-isa", type=click.Choice(["portable", "avx2", "avx512"]),
              help="CPU instructions that code for cpu may use, instead of this machine's level; portable: any 64-bit x86.")
@click.option("--portable", is_flag=True, help="As --arch portable: of onnx, standard operators alone.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Default: float32 on cpu, bfloat16 on cuda.")
@click.option("--max-batch", type=int, default=1, show_default=True, help="Sequences at a time.")
@click.option("--max-context", type=int, default=4096, show_default=True, help="Tokens a sequence can hold.")
@click.option("--prefill-chunk", "prefill_chunks", type=int, multiple=True,
              help="Tokens a prefill call takes; repeat it for several programs.  [default: 128, at most the context]")  # fmt: skip
@click.option("--table", "tables", type=click.Path(path_type=Path), multiple=True,
              help="Measured cuts of the kernels, as `gptoss-export tune` writes them; before those that are shipped.")  # fmt: skip
@click.option("--stop-token", "stop_tokens", type=int, multiple=True, help="In place of the checkpoint's own.")
@json_option
@reports_errors
def command(
    checkpoint, output, target, device, arch, cpu_isa, portable, dtype, max_batch, max_context, prefill_chunks, tables,
    stop_tokens, as_json
) -> None:  # fmt: skip
    """Compile CHECKPOINT into an artifact that `gptoss-export run` and `Runner.load` run."""
    from ..build import BuildOptions, build
    from ..errors import UsageError

    if portable and arch not in (None, "portable"):
        raise UsageError(f"--portable: means --arch portable, found --arch {arch} beside it; give one of them")
    if cpu_isa and (arch or portable or device != "cpu"):
        raise UsageError("--cpu-isa: is for --device cpu, without --arch and --portable, which name what to build for too")
    if cpu_isa and platform.machine() != "x86_64":
        raise UsageError(f"--cpu-isa {cpu_isa}: is for x86_64, this machine is {platform.machine()}; leave it out")
    arch = "portable" if portable else arch
    if cpu_isa:
        arch = f"{platform.machine()}-{'DEFAULT' if cpu_isa == 'portable' else cpu_isa.upper()}"
    chunks = prefill_chunks or (max(1, min(128, max_context)),)
    options = BuildOptions(target, device, dtype, arch, max_batch, max_context, chunks, stop_tokens or None, tables)
    start = time.perf_counter()
    with progress() as steps:
        manifest = build(checkpoint, output, options, steps)
    seconds = time.perf_counter() - start
    memory = _peak_memory()
    total = sum(spec.bytes for spec in manifest.files.values())
    if as_json:
        print_json({
            "artifact": str(output), "target": manifest.target, "device": manifest.device, "arch": manifest.arch,
            "dtype": manifest.dtype, "bytes": total, "seconds": seconds, "steps": steps.seconds,
            "peak_memory_bytes": memory,
        })  # fmt: skip
        return
    click.echo(
        f"{output}: {manifest.target} for {manifest.arch} in {manifest.dtype}, {size(total)}, built in "
        f"{seconds:.0f} s with {size(memory)} of memory at most"
    )


def _peak_memory() -> int:
    """Bytes that this process or one of its compilers held at most, mapped files included."""
    import resource

    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024

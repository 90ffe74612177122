"""gptoss-export build"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..model.expert_formats import EXPERTS
from ..model.training.lora import TARGETS as LORA_TARGETS
from ..shown_text import size
from ..targets import TARGETS
from .errors import reports_errors
from .params import Integers, json_option
from .plain import say
from .progress import progress
from .tables import print_json
from .target_options import add_target_options, chosen_target_options

if TYPE_CHECKING:
    from ..training_options import TrainOptions


@click.command("build")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make. It must not exist."
)
@click.option(
    "--target",
    default=TARGETS[0],
    show_default=True,
    help=f"What to compile to: {', '.join(TARGETS)}. `gptoss-export targets` shows which ones this machine can build.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What the artifact runs on.  [default: the device of --arch; without it the GPU, if this machine has one, "
    "or else the target's first device]",
)
@click.option("--arch", help="What to compile for, such as sm_90, or several: sm_90,sm_80.  [default: this machine]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Dtype of the matrix products and the KV caches.  [default: float32 on cpu, bfloat16 on cuda]",
)
@click.option("--max-batch", type=int, default=1, show_default=True, help="Sequences at a time.")
@click.option(
    "--widths",
    type=Integers(),
    help="Sequences that a decode step takes, such as 1,4,16: one program for each. A step runs the smallest that its "
    "sequences fit in.  [default: 1, 2, 4, ... and --max-batch]",
)
@click.option("--max-context", type=int, default=4096, show_default=True, help="Tokens that a sequence can hold.")
@click.option(
    "--tensor-parallel",
    type=int,
    default=1,
    show_default=True,
    help="Ranks that share the model: processes with a device each, 1, 2, 4 or 8. Loading the artifact starts them.",
)
@click.option(
    "--expert-parallel",
    is_flag=True,
    help="Give the ranks different experts, and not a part of each expert: for big batches and long prompts.",
)
@click.option(
    "--prefill-chunk",
    "prefill_chunks",
    type=int,
    multiple=True,
    help="Tokens that a prefill call takes. May be repeated: one program for each.  [default: what suits the device]",
)
@click.option(
    "--jobs",
    type=int,
    help="Programs that are compiled side by side (aoti).  [default: as many as cores and memory allow]",
)
@click.option(
    "--tuned-configs",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Launch configs that `gptoss-export tune` wrote. The build prefers them to the shipped ones. May be repeated.",
)
@click.option(
    "--stop-token",
    "stop_tokens",
    type=int,
    multiple=True,
    help="Token id that ends a sequence. May be repeated.  [default: those of the checkpoint]",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Merge a LoRA adapter of PEFT, of attention and the unembedding, and with --experts bf16 of experts.",
)
@click.option(
    "--adapter-slots",
    type=int,
    default=0,
    show_default=True,
    help="LoRA adapters that the artifact can have loaded at a time while it runs (aoti). Needs --adapter-rank.",
)
@click.option(
    "--adapter-rank",
    type=int,
    default=0,
    show_default=True,
    help="The largest rank of these adapters, 1 to 64.",
)
@click.option(
    "--experts",
    type=click.Choice(EXPERTS),
    help="Format of the experts' weights in the artifact. nf4 is for NF4 checkpoints alone, and keeps them.  "
    "[default: nf4 for NF4 checkpoints, mxfp4 for all others]",
)
@click.option(
    "--program",
    type=click.Choice(["generate", "train-step"]),
    default="generate",
    show_default=True,
    help="What the artifact is for: to generate text, or to train LoRA factors (gptoss_export.load_train_step).",
)
@click.option("--train-tokens", type=int, help="Tokens of a training step.  [default: 4096]")
@click.option("--lora-rank", type=int, help="Rank of the factors that are trained.  [default: 16]")
@click.option("--lora-alpha", type=float, help="Deltas are multiplied by alpha / rank.  [default: twice the rank]")
@click.option(
    "--lora-target",
    "lora_targets",
    type=click.Choice(LORA_TARGETS),
    multiple=True,
    help="What is trained. May be repeated.  [default: everything]",
)
@click.option(
    "--recompute", is_flag=True, help="Train with less memory: compute the activations of a layer again in backward."
)
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path),
    metavar="KEYFILE",
    help="File with a private Ed25519 key that signs the artifact, for the option --trust of other commands.",
)
@add_target_options
@json_option
@reports_errors
def command(
    checkpoint: Path,
    output: Path,
    target: str,
    device: str | None,
    arch: str | None,
    dtype: str | None,
    max_batch: int,
    widths: list[int] | None,
    max_context: int,
    tensor_parallel: int,
    expert_parallel: bool,
    prefill_chunks: tuple[int, ...],
    jobs: int | None,
    tuned_configs: tuple[Path, ...],
    adapter: Path | None,
    adapter_slots: int,
    adapter_rank: int,
    experts: str | None,
    stop_tokens: tuple[int, ...],
    program: str,
    train_tokens: int | None,
    lora_rank: int | None,
    lora_alpha: float | None,
    lora_targets: tuple[str, ...],
    recompute: bool,
    sign_key: Path | None,
    as_json: bool,
    **target_values: Any,
) -> None:
    """Compile CHECKPOINT into an artifact.

    An artifact is a folder that `gptoss-export run` and `gptoss_export.load` run.
    """
    target_options = chosen_target_options(target, target_values)

    from ..building import BuildOptions, build

    train = _train_options(program == "train-step", train_tokens, lora_rank, lora_alpha, lora_targets, recompute)
    options = BuildOptions(
        target=target,
        device=device,
        arch=arch,
        dtype=dtype,
        max_batch=max_batch,
        widths=None if widths is None else tuple(widths),
        max_context=max_context,
        tensor_parallel=tensor_parallel,
        expert_parallel=expert_parallel,
        prefill_chunks=prefill_chunks or None,
        stop_tokens=stop_tokens or None,
        jobs=jobs,
        tuned_configs=tuned_configs,
        adapter=adapter,
        adapter_slots=adapter_slots,
        adapter_rank=adapter_rank,
        experts=experts,
        train=train,
        target_options=target_options,
    )
    start = time.perf_counter()
    with progress() as shown:
        manifest = build(checkpoint, output, options, shown, sign_key)
    seconds, memory = time.perf_counter() - start, _peak_memory()
    total = sum(spec.bytes for spec in manifest.files.values())
    if as_json:
        print_json(
            {
                "artifact": str(output),
                "target": manifest.target,
                "device": manifest.device,
                "arch": manifest.arch,
                "dtype": manifest.dtype,
                "bytes": total,
                "signed": sign_key is not None,
                "seconds": seconds,
                "stages": shown.seconds,
                "peak_memory_bytes": memory,
                "settings": manifest.provenance.options,
            }
        )
        return
    say(
        f"{output}: {manifest.target} for {manifest.device} ({manifest.arch}) in {manifest.dtype}, {size(total)}, "
        f"built in {seconds:.0f} s with at most {size(memory)} of memory{', signed' if sign_key is not None else ''}"
    )


def _train_options(
    wanted: bool, tokens: int | None, rank: int | None, alpha: float | None, targets: tuple[str, ...], recompute: bool
) -> TrainOptions | None:
    """The options of a training step. Raises UsageError where there are some and none is wanted."""
    from ..errors import UsageError, raise_all
    from ..training_options import TrainOptions

    defaults = TrainOptions()
    given = {
        "--train-tokens": tokens is not None,
        "--lora-rank": rank is not None,
        "--lora-alpha": alpha is not None,
        "--lora-target": bool(targets),
        "--recompute": recompute,
    }
    if not wanted:
        problems = [f"{option}: is for --program train-step" for option, is_given in given.items() if is_given]
        raise_all(UsageError, "options without a training step", problems)
        return None
    return TrainOptions(
        defaults.tokens if tokens is None else tokens,
        defaults.lora_rank if rank is None else rank,
        alpha,
        targets or None,
        recompute,
    )


def _peak_memory() -> int:
    """The most bytes that this process or one of its compilers held, mapped files included."""
    import resource

    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024

"""The options of a build that makes a training step: what they are resolved to, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .artifact.programs import Sizes
from .model.training.lora import MOST_ALPHA, MOST_RANK, MOST_TOKENS, TARGETS, Training
from .values import shown, whole_number


@dataclass(frozen=True)
class TrainOptions:
    """What the user asks of a training step (`build --program train-step`).

    tokens       of a step, of one sequence or of several that are packed
    lora_rank    rank of the factors
    lora_alpha   deltas are multiplied by lora_alpha / lora_rank. None: twice the rank
    lora_targets what gets factors, of model/training/lora.py's TARGETS. None: all of them
    recompute    compute the activations of a layer again in backward, and do not keep them
    """

    tokens: int = 4096
    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] | None = None
    recompute: bool = False


def training_sizes(options: TrainOptions) -> tuple[Sizes, list[str]]:
    """The sizes of the artifact, and what is wrong with the options. Then the sizes mean nothing."""
    if problems := list(_problems(options)):
        return Sizes((1,), 1, (1,)), problems
    tokens, rank = whole_number(options.tokens), whole_number(options.lora_rank)
    assert tokens is not None and rank is not None
    wanted = TARGETS if options.lora_targets is None else options.lora_targets
    training = Training(
        tokens=tokens,
        rank=rank,
        alpha=2.0 * rank if options.lora_alpha is None else float(options.lora_alpha),
        targets=tuple(name for name in TARGETS if name in wanted),
        recompute=options.recompute,
    )
    return Sizes((1,), tokens, (tokens,), training=training), []


def training_settings(training: Training) -> dict[str, Any]:
    """The resolved options by name, as `inspect` shows them."""
    return {
        "program": "train-step",
        "train_tokens": training.tokens,
        "lora_rank": training.rank,
        "lora_alpha": training.alpha,
        "lora_target": list(training.targets),
        "recompute": training.recompute,
    }


def _problems(options: TrainOptions) -> Iterator[str]:
    for option, value, most in (
        ("--train-tokens", options.tokens, MOST_TOKENS),
        ("--lora-rank", options.lora_rank, MOST_RANK),
    ):
        number = whole_number(value)
        if number is None or not 1 <= number <= most:
            yield f"{option} {shown(value)}: expected a whole number from 1 to {most}"
    alpha = options.lora_alpha
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if alpha is not None and not (is_number and 0 < alpha <= MOST_ALPHA):
        yield f"--lora-alpha {shown(alpha)}: expected a number above 0, at most {MOST_ALPHA:g}"
    targets = options.lora_targets
    if targets is not None and (isinstance(targets, str) or not targets):
        yield f"--lora-target {shown(targets)}: expected some of {', '.join(TARGETS)}"
    elif targets is not None:
        for name in targets:
            if name not in TARGETS:
                yield f"--lora-target {shown(name)}: expected one of {', '.join(TARGETS)}"

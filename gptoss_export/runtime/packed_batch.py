"""Sequences in a row, as a training step takes them (model/ops/packed_attention.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import RunError, raise_all
from ..model.training.lora import IGNORED
from ..values import shown, whole_number
from .arguments import sequence, token_ids


@dataclass(frozen=True)
class PackedBatch:
    """A row of T tokens, int64 on the CPU.

    tokens     [T]
    targets    [T]: the token that follows each one, or IGNORED
    positions  [T]: the place of each token in its sequence. Padding is sequences of one token without a target
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor


def pack(sequences: Any, targets: Any, tokens: int, vocab_size: int) -> PackedBatch:
    """Pack sequences into a row of `tokens`.

    sequences  token ids of each, one or more
    targets    as many for each token: a token id or IGNORED. None: the next token of the sequence; the last one has no
               target

    Raises RunError with everything that is wrong: what is no token id, sequences that do not fit, targets of another
    number, and a batch without a target.
    """
    given = [token_ids("token", each, vocab_size) for each in sequence("sequences", sequences, "sequences of tokens")]
    if targets is None:
        wanted = [[*each[1:], IGNORED] for each in given]
    else:
        wanted = [
            sequence("targets", each, "token ids") for each in sequence("targets", targets, "sequences of targets")
        ]
    raise_all(RunError, "sequences that cannot be trained on", _problems(given, wanted, tokens, vocab_size))
    padding = tokens - sum(map(len, given))
    positions = [position for each in given for position in range(len(each))]
    rows = (
        [token for each in given for token in each] + [0] * padding,
        [target for each in wanted for target in each] + [IGNORED] * padding,
        positions + [0] * padding,
    )
    return PackedBatch(*(torch.tensor(row, dtype=torch.int64) for row in rows))


def _problems(
    sequences: Sequence[Sequence[int]], targets: Sequence[Sequence[Any]], tokens: int, vocab_size: int
) -> list[str]:
    problems = [f"sequence {index}: has no tokens" for index, each in enumerate(sequences) if not each]
    if (total := sum(map(len, sequences))) > tokens:
        problems.append(f"{len(sequences)} sequences have {total} tokens, expected at most {tokens}, those of a step")
    if len(targets) != len(sequences):
        return [*problems, f"found targets of {len(targets)} sequences, expected {len(sequences)}"]
    for index, (each, wanted) in enumerate(zip(sequences, targets, strict=True)):
        if len(each) != len(wanted):
            problems.append(f"sequence {index}: has {len(wanted)} targets, expected {len(each)}")
        for target in wanted:
            number = whole_number(target)
            if number is None or (number != IGNORED and not 0 <= number < vocab_size):
                problems.append(
                    f"sequence {index}: target {shown(target)}, expected 0 to {vocab_size - 1} or {IGNORED}"
                )
                break
    if not problems and all(target == IGNORED for wanted in targets for target in wanted):
        problems.append("no target counts: a loss needs a token that follows another one")
    return problems

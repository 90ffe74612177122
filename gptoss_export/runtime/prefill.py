"""Appends the tokens of one prompt to a slot's sequence, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .executor import ChunkOutput, Executor, Outputs, Prompt
from .slots import Slots


def prefill(
    executor: Executor, slots: Slots, slot: int, tokens: Sequence[int], every_token: bool
) -> Iterator[ChunkOutput]:
    """The outputs after every token, in blocks of rows, or the one after the last token. Tokens are appended as the
    outputs are taken. Raises OutOfPagesError where the KV cache is full."""
    done = 0
    while done < len(tokens):
        part = executor.chunk_of(Prompt(slot, slots.lengths()[slot], tokens[done:]))
        slots.reserve(slot, len(part.tokens))
        last = Outputs.LAST if part.ends else Outputs.NONE
        outputs = executor.prefill(part, Outputs.EVERY if every_token else last)
        slots.append(slot, part.tokens)
        done += len(part.tokens)
        yield from outputs
        del outputs  # holds the chunk's hidden states, which need not stay while the next chunk is computed

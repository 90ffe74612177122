"""Puts the prompts of several sequences into one prefill chunk.

A chunk has segments of equal length, and a segment holds tokens of one sequence. A prompt starts in a new segment and
fills as many as it needs. What is left of its last segment is padding (position -1). At most SCORE_ROWS prompts share a
chunk, so that one call of a program makes the logits after all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..artifact.programs import SCORE_ROWS, Prefill
from .executor import Part, Prompt

# A call reads all weights, which takes about as long as the products of so many rows (20b, H100: 7 ms and 0.017 ms a
# row).
CALL = 400


@dataclass(frozen=True)
class Piece:
    """A part of a prompt, from row `row` of the chunk on."""

    part: Part
    row: int

    @property
    def last_row(self) -> int:
        return self.row + len(self.part.tokens) - 1


@dataclass(frozen=True)
class PackedChunk:
    """A prefill program, and what its chunk holds."""

    program: Prefill
    pieces: list[Piece]

    @property
    def rows(self) -> int:
        """Rows up to its last token."""
        return self.pieces[-1].last_row + 1

    def takes_all_of(self, prompts: Sequence[Prompt]) -> bool:
        """Whether it holds all tokens of the prompts that it was packed from."""
        return len(self.pieces) == len(prompts) and self.pieces[-1].part.ends

    def tokens(self) -> list[int]:
        """[C]; 0 where there is padding."""
        return self._laid_out([piece.part.tokens for piece in self.pieces], 0)

    def positions(self) -> list[int]:
        """[C]; -1 where there is padding."""
        parts = [piece.part for piece in self.pieces]
        return self._laid_out([range(part.start, part.start + len(part.tokens)) for part in parts], -1)

    def slots(self) -> list[int]:
        """[S], one for each segment. Segments of padding have that of the first piece."""
        found = [self.pieces[0].part.slot] * self.program.segments
        length = self.program.chunk // self.program.segments
        for piece in self.pieces:
            for segment in range(piece.row // length, piece.last_row // length + 1):
                found[segment] = piece.part.slot
        return found

    def _laid_out(self, values: Sequence[Sequence[int]], padding: int) -> list[int]:
        found = [padding] * self.program.chunk
        for piece, given in zip(self.pieces, values, strict=True):
            found[piece.row : piece.row + len(given)] = given
        return found


def pack(prompts: Sequence[Prompt], programs: Sequence[Prefill]) -> PackedChunk:
    """The next chunk for these prompts: as many of their tokens as it takes, in the order of the prompts.

    It is the smallest chunk that takes all prompts, or a smaller one where several chunks cost less, by their rows and
    CALL: 3,000 tokens are a chunk of 2,048 and one of 1,024, and not one of 8,192.
    """
    smaller, found = _smallest(prompts, programs)
    if smaller is not None and found.takes_all_of(prompts):
        taken, chunks = smaller.program.chunk, sorted(program.chunk for program in programs)
        if taken + _cost(found.rows - taken, chunks) < found.program.chunk:
            return smaller
    return found


def lay_out(parts: Sequence[Prompt], programs: Sequence[Prefill]) -> PackedChunk:
    """The smallest chunk that takes all of these parts, which `pack` has made. Raises ValueError where none does."""
    _, found = _smallest(parts, programs)
    if not found.takes_all_of(parts):
        raise ValueError(f"no chunk takes {sum(len(part.tokens) for part in parts)} tokens of {len(parts)} prompts")
    return found


def _smallest(prompts: Sequence[Prompt], programs: Sequence[Prefill]) -> tuple[PackedChunk | None, PackedChunk]:
    """The smallest chunk that takes all prompts, or else the largest one, and the next smaller one before it."""
    before, found = None, None
    for program in sorted(programs, key=lambda program: program.chunk):
        before, found = found, _packed(prompts, program)
        if found.takes_all_of(prompts):
            break
    assert found is not None  # every artifact has a prefill program
    return before, found


def _cost(rows: int, chunks: Sequence[int]) -> int:
    """The least cost, in rows, of computing so many rows. chunks: in ascending order."""
    if rows <= 0:
        return 0
    costs = [CALL + chunk for chunk in chunks if chunk >= rows][:1]
    if smaller := [chunk for chunk in chunks if chunk < rows][-1:]:
        full = (rows - 1) // smaller[0]
        costs.append(full * (CALL + smaller[0]) + _cost(rows - full * smaller[0], chunks))
    return min(costs)


def _packed(prompts: Sequence[Prompt], program: Prefill) -> PackedChunk:
    length, row = program.chunk // program.segments, 0
    pieces: list[Piece] = []
    for prompt in prompts:
        if row >= program.chunk or len(pieces) == SCORE_ROWS:
            break
        part = prompt.first(program.chunk - row)
        pieces.append(Piece(part, row))
        row += -(-len(part.tokens) // length) * length
    return PackedChunk(program, pieces)

"""Which tokens of which prompts a prefill chunk gets, and where they lie in it."""

from __future__ import annotations

import random

import pytest

from gptoss_export.artifact.programs import SCORE_ROWS, SEGMENT, Prefill
from gptoss_export.runtime.executor import Prompt
from gptoss_export.runtime.packing import PackedChunk, lay_out, pack

PROGRAMS = [Prefill(64), Prefill(32), Prefill(100)]  # of 100 tokens no whole number of segments: one sequence


def prompt(slot: int, length: int, start: int = 0) -> Prompt:
    return Prompt(slot, start, [1000 * slot + start + index for index in range(length)])


def test_segments() -> None:
    assert SEGMENT == 16
    assert [Prefill(chunk).segments for chunk in (8, 16, 64, 100, 2048)] == [1, 1, 4, 1, 128]


def test_two_prompts_in_the_smallest_chunk() -> None:
    packed = pack([prompt(2, 5, start=7), prompt(0, 16)], PROGRAMS)
    assert packed.program == Prefill(32)
    assert packed.tokens() == [*range(2007, 2012), *[0] * 11, *range(16)]
    assert packed.positions() == [*range(7, 12), *[-1] * 11, *range(16)]
    assert packed.slots() == [2, 0]
    assert [(piece.part.slot, piece.last_row, piece.part.ends) for piece in packed.pieces] == [
        (2, 4, True),
        (0, 31, True),
    ]


@pytest.mark.parametrize(
    ("lengths", "chunk", "taken"),
    [
        ([1], 32, [1]),
        ([32], 32, [32]),
        ([33], 64, [33]),
        ([17, 1], 64, [17, 1]),  # three segments
        ([64], 64, [64]),
        ([65], 100, [65]),
        ([16, 64], 100, [16]),  # the largest chunk, which takes one sequence
        ([300, 5], 100, [100]),
    ],
)
def test_the_smallest_chunk_that_takes_all(lengths: list[int], chunk: int, taken: list[int]) -> None:
    packed = pack([prompt(slot, length) for slot, length in enumerate(lengths)], PROGRAMS)
    assert packed.program.chunk == chunk and [len(piece.part.tokens) for piece in packed.pieces] == taken


@pytest.mark.parametrize(
    ("length", "chunk"),
    [
        (100, 128),
        (129, 512),  # one call more costs as much as 400 rows
        (1100, 1024),
        (2049, 2048),
        (3000, 2048),
        (5000, 2048),
        (6500, 2048),
        (7500, 8192),
        (8192, 8192),
        (9000, 8192),
    ],
)
def test_fewest_rows_in_all(length: int, chunk: int) -> None:
    programs = [Prefill(chunk) for chunk in (128, 512, 1024, 2048, 8192)]
    assert pack([prompt(0, length)], programs).program.chunk == chunk
    shared = [prompt(0, length - 40), prompt(1, 40)]
    assert pack(shared, programs).program.chunk == chunk


def test_a_prompt_is_cut_where_the_chunk_ends() -> None:
    packed = pack([prompt(0, 20), prompt(1, 50), prompt(2, 3)], [Prefill(64)])
    assert [(piece.part.slot, piece.row, len(piece.part.tokens), piece.part.ends) for piece in packed.pieces] == [
        (0, 0, 20, True),
        (1, 32, 32, False),
    ]
    assert packed.slots() == [0, 0, 1, 1]


def test_no_more_prompts_than_one_unembedding_takes() -> None:
    packed = pack([prompt(slot, 1) for slot in range(100)], [Prefill(2048)])
    assert len(packed.pieces) == SCORE_ROWS == 64


def test_random_prompts_lose_no_token_and_mix_none() -> None:
    drawn = random.Random(3)
    for _ in range(300):
        programs = [Prefill(drawn.choice((8, 16, 48, 64, 100, 256))) for _ in range(drawn.randrange(1, 4))]
        prompts = [prompt(slot, drawn.randrange(1, 90), drawn.randrange(50)) for slot in range(drawn.randrange(1, 7))]
        check(pack(prompts, programs), prompts)


@pytest.mark.parametrize("lengths", [[1500] * 5, [3000], [40] * 70, [100, 2000, 3], [8192, 1]])
def test_some_parts_of_a_chunk_are_laid_out_whole(lengths: list[int]) -> None:
    """Those whose sequences found no pages are left out; the first one is tried alone after an error."""
    programs = [Prefill(chunk) for chunk in (128, 512, 1024, 2048, 8192)]
    parts = [piece.part for piece in pack([prompt(slot, n) for slot, n in enumerate(lengths)], programs).pieces]
    for some in (parts, parts[:1], parts[:2], parts[1:], parts[::2]):
        if some:
            found = lay_out(some, programs)
            assert [piece.part.tokens for piece in found.pieces] == [part.tokens for part in some]


def test_parts_that_fit_no_chunk() -> None:
    with pytest.raises(ValueError, match="no chunk takes 130 tokens of 2 prompts"):
        lay_out([prompt(0, 65), prompt(1, 65)], [Prefill(64), Prefill(128)])


@pytest.mark.parametrize(("chunks", "length"), [((8, 8192), 8190), ((1, 2048), 2046), ((16, 8192), 5335)])
def test_a_small_chunk_beside_a_large_one(chunks: tuple[int, ...], length: int) -> None:
    assert pack([prompt(0, length)], [Prefill(chunk) for chunk in chunks]).program.chunk == chunks[-1]


def check(packed: PackedChunk, prompts: list[Prompt]) -> None:
    tokens, positions, slots = packed.tokens(), packed.positions(), packed.slots()
    length = packed.program.chunk // packed.program.segments
    assert len(tokens) == len(positions) == packed.program.chunk and len(slots) == packed.program.segments
    found: dict[int, list[tuple[int, int]]] = {}
    for row, (token, position) in enumerate(zip(tokens, positions, strict=True)):
        if position >= 0:
            found.setdefault(slots[row // length], []).append((token, position))
    assert found
    for place, piece in enumerate(packed.pieces):
        given = prompts[place]
        count = len(piece.part.tokens)
        expected = [(token, given.start + index) for index, token in enumerate(given.tokens[:count])]
        assert found.pop(given.slot) == expected and piece.part.ends == (count == len(given.tokens))
        assert piece.part.ends or place == len(packed.pieces) - 1
    assert not found

"""MXFP4 against transformers' unpacking, and quantization against the OCP rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_export.model import mxfp4


def test_dequantize_equals_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 4, 16), generator=random, dtype=torch.uint8)
    scales = torch.randint(90, 150, (3, 10, 4), generator=random, dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).mT
    assert torch.equal(mxfp4.dequantize(blocks, scales), expected)


def test_scales_are_exact_powers_of_two_over_the_whole_range() -> None:
    values = mxfp4.scale_values(torch.arange(256, dtype=torch.uint8)).double()
    assert torch.equal(values[:255], torch.ldexp(torch.ones(255).double(), torch.arange(255) - 127))
    assert values[255].isnan()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)),  # ties to even
        *((0.26, 0.5), (4.99, 4.0), (5.01, 6.0), (7.9, 6.0), (-2.6, -3.0), (-0.0, 0.0)),
    ],
)
def test_rounding(value: float, expected: float) -> None:
    group = torch.zeros(32)
    group[0], group[1] = 4.0, value  # the largest magnitude, below 8, makes the shared scale 1
    assert mxfp4.dequantize(*mxfp4.quantize(group))[1] == expected


@given(st.integers(-100, 100), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_what_mxfp4_holds_comes_back_exactly(exponent: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, 2, 16), generator=random, dtype=torch.uint8)
    scales = torch.full((4, 2), 127 + exponent, dtype=torch.uint8)
    weights = mxfp4.dequantize(blocks, scales)
    assert torch.equal(mxfp4.dequantize(*mxfp4.quantize(weights)), weights)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=32, max_size=32))
@settings(max_examples=200, deadline=None)
def test_deviation_is_at_most_half_a_step_unless_saturated(values: list[float]) -> None:
    weights = torch.tensor(values)
    blocks, scales = mxfp4.quantize(weights)
    got, step = mxfp4.dequantize(blocks, scales).double(), mxfp4.scale_values(scales).double()
    scaled = weights.double().abs() / step
    # Codes are 0.5 apart below 2, 1 apart up to 4, then 2.
    half_step = torch.where(scaled <= 2, 0.25, torch.where(scaled <= 4, 0.5, 1.0)) * step
    deviation = (got - weights.double()).abs()
    saturated = scaled > 6
    assert bool((deviation[~saturated] <= half_step[~saturated]).all())
    assert bool((got[saturated].abs() == 6 * step).all())


def test_not_a_number_marks_its_group_only() -> None:
    weights = torch.ones(2, 64)
    weights[0, 3] = float("nan")
    weights[1, 40] = float("inf")
    got = mxfp4.dequantize(*mxfp4.quantize(weights))
    assert got[0, :32].isnan().all() and got[1, 32:].isnan().all()
    assert torch.equal(got[0, 32:], torch.ones(32)) and torch.equal(got[1, :32], torch.ones(32))


def test_interleaving_moves_every_code_to_where_it_is_unpacked() -> None:
    """As the module says: one rotation and one mask make a pair of bfloat16 times 2^-126, twice for the last pair."""
    blocks = torch.randint(0, 256, (50, 3, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).view(50, 3, 2, 2, 8).int()  # pairs of words, word, code
    words = mxfp4.interleave(blocks).view(torch.int32).view(50, 3, 2, 2).long() & 0xFFFFFFFF
    for code in range(8):
        word = words[..., code // 4]
        pair = (
            word & 0x81C081C0,
            (word >> 4 | word << 28) & 0x81C081C0,
            (word << 6) & 0x81C081C0,
            (word << 2) & 0x80C080C0 | (word >> 6) & 0x01000100,
        )[code % 4]
        for which in range(2):
            bits = (pair >> (16 * which) & 0xFFFF).to(torch.int16)
            found = bits.view(torch.bfloat16).double() * 2.0**126
            assert torch.equal(found.float(), mxfp4.code_values(codes[..., which, code]))


def test_interleaving_loses_nothing() -> None:
    """Blocks with one bit set have one bit set afterwards, each in another place."""
    single = 1 << torch.arange(64)
    moved = mxfp4.interleave_words(single)
    assert sorted(moved.tolist()) == sorted(single.tolist())


def test_codes_go_back_where_they_were() -> None:
    blocks = torch.randint(0, 256, (3, 5, 2, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mxfp4.deinterleave(mxfp4.interleave(blocks)), blocks)
    assert not torch.equal(mxfp4.interleave(blocks), blocks)

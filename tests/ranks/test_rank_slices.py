"""Slices of stored tensors, read from where they lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gptoss_export.model.ranks import Slice
from gptoss_export.runtime import rank_slices
from gptoss_export.runtime.rank_slices import StoredColumns, stored_slices
from gptoss_export.runtime.stored_tensors import StoredFile, StoredTensor

SHAPE = (3, 10, 7, 4)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, StoredTensor]:
    """A tensor, and where it is stored. Another one lies behind it, and nothing behind that."""
    path = tmp_path_factory.mktemp("stored") / "x.safetensors"
    tensor = torch.arange(3 * 10 * 7 * 4, dtype=torch.float32).view(SHAPE)
    save_file({"x": tensor}, path)
    return tensor, StoredFile(path).tensors["x"]


@st.composite
def parts(draw: st.DrawFn) -> tuple[Slice, float, float]:
    """A slice, and from where to where it is read."""
    dim = draw(st.integers(0, 3))
    start = draw(st.integers(0, SHAPE[dim] - 1))
    begin, end = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    return Slice(dim, start, draw(st.integers(start + 1, SHAPE[dim]))), begin, end


@pytest.mark.parametrize(("most", "large"), [(4 << 20, 64 << 10), (100, 64 << 10), (100, 20), (1, 1)])
def test_any_bytes_of_any_slice(
    stored: tuple[torch.Tensor, StoredTensor], monkeypatch: pytest.MonkeyPatch, most: int, large: int
) -> None:
    monkeypatch.setattr(rank_slices, "_MOST", most)
    monkeypatch.setattr(rank_slices, "_LARGE", large)
    tensor, at = stored

    @settings(deadline=None)
    @given(parts())
    def check(wanted: tuple[Slice, float, float]) -> None:
        part, begin, end = wanted
        (found,) = stored_slices([at], [part])
        expected = tensor.narrow(part.dim, part.start, part.stop - part.start)
        data = expected.contiguous().numpy().tobytes()
        assert found.shape == tuple(expected.shape) and found.nbytes == len(data)
        start, stop = int(begin * len(data)), int(end * len(data))
        read = bytearray(stop - start)
        found.read(start, memoryview(read))
        assert bytes(read) == data[start:stop]

    check()


def test_rows_of_several_stored_tensors(stored: tuple[torch.Tensor, StoredTensor]) -> None:
    """A fused weight whose parts are stored apart, and slices that begin and end in different ones."""
    tensor, at = stored
    found = stored_slices([at, at, at], [Slice(0, 1, 5), Slice(0, 8, 9)])
    read = b"".join(bytes(piece.memory) for piece in found if isinstance(piece, StoredTensor))
    whole = torch.cat((tensor, tensor, tensor))
    assert read == torch.cat((whole[1:5], whole[8:9])).numpy().tobytes()


def test_what_lies_in_one_piece_stays_mapped(stored: tuple[torch.Tensor, StoredTensor]) -> None:
    _, at = stored
    assert isinstance(stored_slices([at], [Slice(0, 1, 2)])[0], StoredTensor)
    assert isinstance(stored_slices([at], [Slice(1, 0, 10)])[0], StoredTensor)
    assert isinstance(stored_slices([at], [Slice(1, 0, 9)])[0], StoredColumns)

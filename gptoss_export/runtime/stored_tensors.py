"""The tensors of a safetensors file, mapped or read in parts, without a tensor library: safetensors' own reader copies,
or needs torch.

The format: eight bytes with the length n of the header (little-endian), n bytes of JSON, then the tensors' bytes. The
header has for each tensor its dtype, its shape, and its first and last byte among those behind the header.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..json_file import LARGEST, parse_object
from ..model.dtypes import ITEM_SIZES, STORED
from ..values import shown

_LENGTH = 8  # bytes of the length


@dataclass(frozen=True)
class StoredTensor:
    """dtype: torch's name without `torch.`. memory: what the file holds of it, in the order of the shape's indices,
    where it is mapped."""

    shape: tuple[int, ...]
    dtype: str
    memory: memoryview
    file: FileIO
    begin: int

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def read(self, start: int, to: memoryview) -> None:
        """Fill `to` with the tensor's bytes from `start` on. Unlike reading mapped memory, this maps no pages, of which
        a large file has millions. Raises ArtifactError where the file ends before or cannot be read."""
        done = 0
        while done < to.nbytes:
            at = self.begin + start + done
            try:
                count = os.preadv(self.file.fileno(), [to[done:]], at)
            except OSError as error:
                raise ArtifactError(f"{self.file.name}: cannot be read at byte {at} ({error.strerror})") from None
            if count == 0:
                raise ArtifactError(f"{self.file.name}: ends at byte {at}, expected more")
            done += count


class StoredFile:
    """A file's tensors by name. They stay mapped while one is used. Raises ArtifactError where it cannot be read."""

    def __init__(self, path: Path) -> None:
        try:
            file = FileIO(path)  # closed with the last of its tensors
            # Private: torch wants memory that it could write. Nobody does.
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            begin = _LENGTH + int.from_bytes(whole[:_LENGTH], "little")
            if not _LENGTH < begin <= min(len(whole), _LENGTH + LARGEST):
                raise ValueError(f"a header of {begin - _LENGTH:,} bytes in a file of {len(whole):,}")
            header = parse_object(
                bytes(whole[_LENGTH:begin]), ArtifactError, subject=f"{path}: cannot be read as safetensors: header"
            )
            self.tensors = {
                name: _tensor(name, item, whole, begin, file) for name, item in header.items() if name != "__metadata__"
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: cannot be read as safetensors ({error})") from None


def _tensor(name: str, item: dict[str, Any], whole: memoryview, begin: int, file: FileIO) -> StoredTensor:
    data = whole[begin:]
    (start, end), shape = item["data_offsets"], tuple(item["shape"])
    if item["dtype"] not in STORED:
        raise ValueError(f"{name}: dtype {shown(item['dtype'])}, expected {', '.join(STORED)}")
    dtype = STORED[item["dtype"]]
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError(f"{name}: {list(shape)} at bytes {start} to {end}, expected whole numbers")
    size = math.prod(shape) * ITEM_SIZES[dtype]
    if not start <= end <= len(data) or end - start != size:
        found = f"{dtype} {list(shape)} at bytes {start} to {end} of {len(data)}"
        raise ValueError(f"{name}: {found}, expected {size} bytes")
    return StoredTensor(shape, dtype, data[start:end], file, begin + start)

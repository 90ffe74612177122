"""Turns stored numbers into those of the dtype that programs take, on the host, as torch does: rounded to the nearest,
ties to even."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

FLOATS = ("bfloat16", "float16", "float32")


def converted(memory: memoryview, stored: str, wanted: str) -> memoryview:
    """The numbers in `memory` as bytes of another dtype. Raises ArtifactError for a dtype that is not in FLOATS."""
    if stored not in FLOATS or wanted not in FLOATS:
        raise ArtifactError(f"weights: found {stored}, which cannot become {wanted}; expected {', '.join(FLOATS)}")
    import numpy as np

    values = (
        widened(np.frombuffer(memory, np.uint16), stored) if stored != "float32" else np.frombuffer(memory, np.float32)
    )
    found = values
    if wanted == "float16":
        with np.errstate(over="ignore"):
            found = values.astype(np.float16)
    elif wanted == "bfloat16":
        found = _to_bfloat16(values)
    return found.data.cast("B")


def widened(halves: np.ndarray, stored: str) -> np.ndarray:
    """The bits of float16 or bfloat16, uint16, as float32."""
    import numpy as np

    if stored == "float16":
        return halves.view(np.float16).astype(np.float32)
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    import numpy as np

    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)

"""gpt-oss's own tokenizer, for tests on a machine that has it."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

VARIABLE = "GPTOSS_TOKENIZER"  # names tokenizer.json or tokenizer.json.xz
BESIDE = Path(__file__).parents[2] / "shared" / "data" / "gpt-oss-tokenizer" / "tokenizer.json.xz"
VOCABULARY = 201_088  # tokens of the models


def real_tokenizer_json() -> bytes:
    """tokenizer.json of gpt-oss. Skips the test where this machine has none."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else BESIDE
    if not path.is_file():
        pytest.skip(f"gpt-oss's tokenizer.json(.xz) not found at {path}; name it in {VARIABLE}")
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content

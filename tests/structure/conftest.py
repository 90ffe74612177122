"""Tokenizers: that of synthetic checkpoints, and the real one of gpt-oss where this machine has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_tokenizer import VOCABULARY, real_tokenizer_json
from tokenizers import Tokenizer

from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.structure.structures import Structures


@pytest.fixture(scope="session")
def small(checkpoints: dict[str, Path]) -> HarmonyTokenizer:
    """512 tokens: single bytes, and the special tokens."""
    tokenizer = Tokenizer.from_file(str(checkpoints["hf"] / "tokenizer.json"))
    return HarmonyTokenizer.of(tokenizer, PRESETS["tiny"].vocab_size)


@pytest.fixture(scope="session")
def small_structures(small: HarmonyTokenizer) -> Structures:
    return Structures(small, PRESETS["tiny"].vocab_size)


@pytest.fixture(scope="session")
def real() -> HarmonyTokenizer:
    """gpt-oss's own tokenizer. Skips the test where this machine has none."""
    return HarmonyTokenizer.of(Tokenizer.from_buffer(real_tokenizer_json()), VOCABULARY)


@pytest.fixture(scope="session")
def real_structures(real: HarmonyTokenizer) -> Structures:
    return Structures(real, VOCABULARY)


@pytest.fixture(scope="session", params=["small", "real"])
def control(request: pytest.FixtureRequest) -> HarmonyTokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def structures(control: HarmonyTokenizer, request: pytest.FixtureRequest) -> Structures:
    small = control.tokenizer.get_vocab_size() == PRESETS["tiny"].vocab_size
    return request.getfixturevalue("small_structures" if small else "real_structures")

"""The real tokenizer and openai-harmony on it, and a tokenizer of bytes as the tiny model has it."""

from __future__ import annotations

import pytest
from byte_tokenizers import TINY_SPECIAL, TINY_VOCABULARY, byte_tokenizer
from harmony_oracle import open_oracle
from openai_harmony import HarmonyEncoding
from real_tokenizer import VOCABULARY, real_tokenizer_json
from tokenizers import Tokenizer

from gptoss_export.harmony.vocabulary import HarmonyTokenizer


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    return real_tokenizer_json()


@pytest.fixture(scope="session")
def real(tokenizer_json: bytes) -> HarmonyTokenizer:
    return HarmonyTokenizer.of(Tokenizer.from_buffer(tokenizer_json), VOCABULARY)


@pytest.fixture(scope="session")
def oracle(tokenizer_json: bytes, tmp_path_factory: pytest.TempPathFactory) -> HarmonyEncoding:
    return open_oracle(tokenizer_json, tmp_path_factory.mktemp("tiktoken"))


@pytest.fixture(scope="session")
def tiny() -> HarmonyTokenizer:
    """512 tokens: bytes, and the special tokens last, as those of a synthetic checkpoint of the tiny preset."""
    return HarmonyTokenizer.of(byte_tokenizer(TINY_SPECIAL), TINY_VOCABULARY)

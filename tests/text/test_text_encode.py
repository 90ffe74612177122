"""Text to tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_tokenizer import VOCABULARY, real_tokenizer_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gptoss_export.errors import UsageError
from gptoss_export.text.tokenizer import Text


def byte_tokenizer() -> Tokenizer:
    """Bytes, two longer tokens, and a special one."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġw"]
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[("h", "e"), ("Ġ", "w")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


TOKENIZER = byte_tokenizer()


@given(st.text() | st.lists(st.sampled_from(["he", " w", "<|end|>", "ö", "🙂", "\n"])).map("".join))
def test_the_tokens_are_those_of_the_library(text: str) -> None:
    assert Text(TOKENIZER).encode(text) == TOKENIZER.encode(text).ids


def test_the_library_is_called_where_its_reports_are_kept() -> None:
    surrounded: list[str] = []

    @contextmanager
    def quiet() -> Iterator[None]:
        surrounded.append("begin")
        yield
        surrounded.append("end")

    assert Text(TOKENIZER, quiet=quiet).encode("he") == [256] and surrounded == ["begin", "end"]
    with pytest.raises(UsageError, match="cannot make tokens of this text"):
        Text(TOKENIZER, quiet=quiet).encode(b"he")  # type: ignore[arg-type]
    assert surrounded[2] == "begin"


def test_other_threads_run_meanwhile() -> None:
    """As an engine and an event loop must, also while somebody sends a book."""
    text = Text(Tokenizer.from_str(real_tokenizer_json().decode()), vocab_size=VOCABULARY)
    over, pauses = threading.Event(), []

    def watch() -> None:
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    assert len(text.encode("The quick brown fox jumps over the lazy dog. 0123456789\n" * 20_000)) > 200_000
    seconds = time.perf_counter() - begin
    over.set()
    thread.join()
    assert max(pauses) < seconds / 2 or seconds < 0.1, (max(pauses), seconds)

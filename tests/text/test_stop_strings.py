"""`--stop`: an answer ends at a text, wherever its tokens break it, and nothing of that text is printed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from cli_helpers import invoke
from test_text_stream import byte_tokenizer

from gptoss_export.text.stop_strings import StopStrings
from gptoss_export.text.tokenizer import Text


@pytest.mark.parametrize("stops", [("END",), ("\n\n", "b"), ("é€",), ("aab", "ab"), ("x" * 40,)])
def test_random_texts(stops: tuple[str, ...]) -> None:
    """Token by token: it ends with the first token after which a stop string is there, and not before."""
    tokenizer, drawn = byte_tokenizer("EN", "D and", "\n\n", "aa"), random.Random(repr(stops))
    text = Text(tokenizer, special_tokens=False)
    ending = StopStrings(text, stops)
    ended = 0
    for _ in range(200):
        whole = "".join(
            drawn.choices(["END", "\n", "a", "ab", "b", "é", "€", "x" * 9, "EN", " "], k=drawn.randrange(20))
        )
        tokens = tokenizer.encode(whole).ids
        for count in range(1, len(tokens) + 1):
            decoded = tokenizer.decode(tokens[:count])
            there = any(stop in decoded for stop in stops)
            assert ending.ends(tokens[:count]) == there
            if there:
                cut = ending.cut(decoded)
                assert not any(stop in cut for stop in stops) and decoded.startswith(cut)
                ended += 1
                break
    assert ended > 10 or stops[0] == "x" * 40


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    ending = StopStrings(Text(byte_tokenizer(), special_tokens=False), ("STOP", "END"))
    assert [ending.certain(text) for text in ("abc", "abS", "abSTO", "STOX", "EN", "a")] == [3, 2, 2, 4, 0, 1]


def test_streamed_and_whole(artifact: Path) -> None:
    """A text out of the middle of the answer ends it there."""
    options = ("--prompt", "Hello, world", "--max-new-tokens", 24, "--no-stop")
    answer = json.loads(invoke("run", artifact, *options, "--json").stdout)
    text = answer["text"]
    # The first place of a text that the middle of the answer has, without a part of a character.
    places = (at for at in range(len(text) // 3, len(text) - 4) if text.index(text[at : at + 4]) == at)
    at = next(at for at in places if text[at : at + 4].isascii())
    stop = text[at : at + 4]
    found = json.loads(invoke("run", artifact, *options, "--stop", stop, "--stop", "not in it", "--json").stdout)
    assert found["text"] == text[:at] and found["finish"] == "stop"
    assert found["tokens"] == answer["tokens"][: len(found["tokens"])] and len(found["tokens"]) < 24
    assert invoke("run", artifact, *options, "--stop", stop).stdout == found["text"] + "\n"


def test_an_empty_stop_string(artifact: Path) -> None:
    done = invoke("run", artifact, "--tokens", "1", "--stop", "")
    assert done.exit_code == 2 and "--stop: found an empty text" in done.stderr

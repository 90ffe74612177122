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


def test_special_tokens_between_the_letters_of_a_stop_string() -> None:
    """They are no part of the text, however many there are."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<|start|>"])
    start = tokenizer.token_to_id("<|start|>")
    first, second = tokenizer.encode("ab").ids
    ending = StopStrings(Text(tokenizer), ("ab",))
    assert not ending.ends([first, *[start] * 30])
    assert ending.ends([first, *[start] * 30, second])
    assert not StopStrings(Text(tokenizer, special_tokens=True), ("ab",)).ends([first, start, second])


def test_a_part_of_a_character_is_no_stop_string() -> None:
    """It reads as U+FFFD, which is a character of its own: its text ends an answer one token later."""
    tokenizer = byte_tokenizer()
    ending = StopStrings(Text(tokenizer), ("\ufffd",))
    for text in ("x 🫠", "🫠" * 5 + "é"):
        tokens = tokenizer.encode(text).ids
        assert not any(ending.ends(tokens[:count]) for count in range(1, len(tokens) + 1))
    tokens = tokenizer.encode("a\ufffdb").ids
    assert [ending.ends(tokens[:count]) for count in range(1, len(tokens) + 1)] == [False] * (len(tokens) - 1) + [True]


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

"""Streamed text is what decoding all tokens at once gives, and a token costs the same however long the text is."""

import random
from collections.abc import Callable, Iterable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gptoss_export.text.text_stream import TextStream
from gptoss_export.text.tokenizer import Text

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
ENDS = (["<|end|>", "<|start|>"], ["<tool>"])  # special tokens, and one that is added but not special
UNKNOWN = 999


def byte_tokenizer(*merged: str) -> Tokenizer:
    """All bytes as tokens, some longer tokens, then added tokens."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [word for text in merged for word, _ in level.pre_tokenize_str(text)]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(ALPHABET + words)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = level, decoders.ByteLevel()
    tokenizer.add_special_tokens(ENDS[0])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ENDS[1]])
    return tokenizer


def streamed(tokenizer: Tokenizer, tokens: Iterable[int], special_tokens: bool = False) -> str:
    text = TextStream(Text(tokenizer, special_tokens))
    return "".join([text.push(token) for token in tokens]) + text.end()


def random_bytes(draw: random.Random, tokenizer: Tokenizer) -> list[int]:
    return [draw.randrange(tokenizer.get_vocab_size()) for _ in range(draw.randrange(60))]


def continuation_bytes(draw: random.Random, tokenizer: Tokenizer) -> list[int]:
    """Bytes that make parts of characters, nearly all of them wrong."""
    coded = [ALPHABET.index(_symbol(byte)) for byte in (0x80, 0xBF, 0xC3, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xFF, 0x41)]
    return draw.choices([*coded, tokenizer.token_to_id("<|end|>"), UNKNOWN], k=draw.randrange(80))


def characters(draw: random.Random, tokenizer: Tokenizer) -> list[int]:
    """Right text of 1 to 4 bytes a character, cut into bytes, with special tokens between and inside of characters."""
    tokens = tokenizer.encode("".join(draw.choices("aé€😀 \n\ufffd日", k=30))).ids
    for _ in range(draw.randrange(4)):
        index = draw.randrange(len(tokens))
        tokens[index:index] = [tokenizer.token_to_id(draw.choice(ENDS[0] + ENDS[1]))] * draw.choice((1, 12))
    return tokens[: draw.randrange(len(tokens))]


def _symbol(byte: int) -> str:
    """The symbol of the byte-level alphabet, as GPT-2 defines it: printable bytes are themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))


@pytest.mark.parametrize("make", [random_bytes, continuation_bytes, characters], ids=lambda make: make.__name__)
def test_parts_are_together_the_whole_text(make: Callable[[random.Random, Tokenizer], list[int]]) -> None:
    draw = random.Random(5)
    tokenizer = byte_tokenizer("the", " word", "日本")
    for _ in range(1500):
        tokens = make(draw, tokenizer)
        assert streamed(tokenizer, tokens) == tokenizer.decode(tokens), tokens
        shown = tokenizer.decode(tokens, skip_special_tokens=False)
        assert streamed(tokenizer, tokens, special_tokens=True) == shown, tokens


def test_a_decoder_that_treats_the_first_token_differently() -> None:
    words = {word: index for index, word in enumerate(["▁", "▁a", "b", "▁▁c"])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    draw = random.Random(6)
    for _ in range(300):
        tokens = draw.choices(range(4), k=12)
        assert streamed(tokenizer, tokens) == tokenizer.decode(tokens), tokens


def test_characters_appear_when_they_are_complete() -> None:
    tokenizer = byte_tokenizer()
    text = TextStream(Text(tokenizer))
    assert [text.push(token) for token in tokenizer.encode("a€b").ids] == ["a", "", "", "€", "b"]
    assert text.end() == ""
    cut = TextStream(Text(tokenizer))
    assert [cut.push(token) for token in tokenizer.encode("€").ids[:2]] == ["", ""]
    assert cut.end() == "\ufffd"


class Counting:
    """A tokenizer that counts the tokens that it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.most = tokenizer, 0
        self.id_to_token, self.get_added_tokens_decoder = tokenizer.id_to_token, tokenizer.get_added_tokens_decoder

    def decode(self, tokens: list[int], **options: bool) -> str:
        self.most = max(self.most, len(tokens))
        return self.tokenizer.decode(tokens, **options)


@pytest.mark.parametrize("text", ["word ", "😀", "\ufffd", "<|end|>"])
@pytest.mark.parametrize("broken", [False, True])
def test_the_cost_of_a_token_does_not_grow(text: str, broken: bool) -> None:
    counting = Counting(byte_tokenizer())
    tokens = counting.tokenizer.encode(text).ids * 400
    if broken:
        tokens = tokens[-1:] * 2000
    assert streamed(counting, tokens) == counting.tokenizer.decode(tokens)  # type: ignore[arg-type]
    assert counting.most <= 20


def test_a_tokenizer_without_text_for_a_token() -> None:
    assert streamed(byte_tokenizer(), [UNKNOWN, UNKNOWN]) == ""

"""The tokenizer of an artifact: control tokens that it must have, and errors that name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from byte_tokenizers import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import UsageError
from gptoss_export.harmony.messages import Conversation, Message
from gptoss_export.harmony.parsing import AnswerParser
from gptoss_export.harmony.rendering import prompt_tokens
from gptoss_export.harmony.vocabulary import CONTROL_TOKENS, HarmonyTokenizer
from gptoss_export.text.tokenizer import NoTokenizerError

ALL = {token: 300 + index for index, token in enumerate(CONTROL_TOKENS.values())}


def test_ids_are_those_of_the_tokenizer(real: HarmonyTokenizer) -> None:
    found = {field: getattr(real, field) for field in CONTROL_TOKENS}
    assert found == {
        "start": 200006,
        "end": 200007,
        "message": 200008,
        "channel": 200005,
        "constrain": 200003,
        "call": 200012,
        "return_": 200002,
    }
    assert real.stop_tokens == (200002, 200012)


@pytest.mark.parametrize("missing", [["<|start|>"], ["<|constrain|>", "<|call|>"], list(ALL)])
def test_every_missing_control_token_is_named(missing: list[str]) -> None:
    left = {token: 300 + index for index, token in enumerate(token for token in ALL if token not in missing)}
    with pytest.raises(UsageError, match=r"^here/tokenizer\.json: lacks control tokens") as error:
        HarmonyTokenizer.of(byte_tokenizer(left), 512, "here/tokenizer.json")
    for token in ALL:
        assert (f"  - {token}: not found" in str(error.value).split("\n")) == (token in missing)


def test_a_control_token_beyond_the_model_is_named() -> None:
    with pytest.raises(UsageError, match=r"<\|return\|>: found id 306, expected 0 to 305, the model's tokens"):
        HarmonyTokenizer.of(byte_tokenizer(ALL), 306)


def test_a_control_token_that_is_text_is_named() -> None:
    """Text of a user would become the token."""
    tokenizer = byte_tokenizer({token: index for token, index in ALL.items() if token != "<|return|>"})
    tokenizer.add_tokens([AddedToken("<|return|>", special=False)])
    assert tokenizer.encode("<|return|>").ids == [306]
    with pytest.raises(UsageError, match=r"<\|return\|>: found as text, expected a token that is marked as special"):
        HarmonyTokenizer.of(tokenizer, 512)


def test_a_vocabulary_that_has_a_control_token_as_a_word() -> None:
    """Some tokenizers look up whole words before they merge bytes. The text is refused then."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"<|{index}|>" for index in range(256, 300)), *ALL]
    model = models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(ALL))
    harmony = HarmonyTokenizer.of(tokenizer, 512)
    assert tokenizer.encode("<|end|>").ids == [harmony.end]
    with pytest.raises(UsageError, match="the tokenizer makes a control token of plain text"):
        harmony.encode("<|end|>")


def test_the_tokenizer_of_an_artifact(uncompiled: Path) -> None:
    """The tiny model's: what is written with it is read with it."""
    tokenizer = HarmonyTokenizer.open(uncompiled, load_manifest(uncompiled))
    assert tokenizer.stop_tokens == (511, 510)
    prompt = prompt_tokens(Conversation((Message("user", "é<|end|>"),)), tokenizer)
    assert max(prompt) < 512
    parser = AnswerParser(tokenizer)
    for token in [tokenizer.channel, *tokenizer.encode("final"), tokenizer.message, *tokenizer.encode("Hé"), 511]:
        parser.push(token)
    assert parser.messages == [Message("assistant", "Hé", "final")]
    assert parser.finished


def test_an_artifact_without_a_tokenizer(uncompiled: Path) -> None:
    manifest = load_manifest(uncompiled)
    files = {name: file for name, file in manifest.files.items() if name != "tokenizer.json"}
    with pytest.raises(
        NoTokenizerError, match=r"tokenizer\.json not found; a conversation needs it: build the artifact"
    ):
        HarmonyTokenizer.open(uncompiled, replace(manifest, files=files))

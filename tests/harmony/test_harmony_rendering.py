"""Prompts are those of openai-harmony, token for token, with the real tokenizer."""

from __future__ import annotations

import pytest
from harmony_oracle import oracle_message, oracle_prompt
from harmony_strategies import MANY, SPECIAL, conversations, texts, without_reasoning_before_the_last_final
from hypothesis import example, given
from openai_harmony import HarmonyEncoding
from tokenizers import Tokenizer

from gptoss_export.errors import UsageError
from gptoss_export.harmony.messages import Conversation, FunctionTool, Message
from gptoss_export.harmony.rendering import message_tokens, prompt_tokens
from gptoss_export.harmony.vocabulary import HarmonyTokenizer

WEATHER = FunctionTool(
    "get_weather",
    "Weather of a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where", "examples": ["Paris", "Rome"]},
            "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
            "days": {"type": "array", "items": {"type": "integer"}, "nullable": True},
        },
        "required": ["city"],
    },
)
TURNS = (
    Message("user", "Weather?"),
    Message("assistant", "I look.", "analysis"),
    Message("assistant", '{"city":"Rome"}', "commentary", "functions.get_weather", "<|constrain|>json"),
    Message("tool", '{"t":20}', "commentary", "assistant", name="functions.get_weather"),
    Message("assistant", "Sunny.", "analysis"),
    Message("assistant", "It is 20 degrees.", "final"),
    Message("user", "And Paris?"),
)
LONG = (*TURNS, Message("assistant", "Again.", "analysis"), Message("assistant", "21.", "final"), Message("user", "?"))


@MANY
@given(conversation=conversations)
@example(conversation=Conversation(TURNS, tools=(WEATHER,), instructions="Be short.", date="2026-01-31"))
@example(conversation=Conversation(LONG, effort="high", builtin_tools=("python", "browser")))
def test_prompts_are_those_of_the_oracle(
    real: HarmonyTokenizer, oracle: HarmonyEncoding, conversation: Conversation
) -> None:
    expected = oracle_prompt(oracle, without_reasoning_before_the_last_final(conversation))
    assert prompt_tokens(conversation, real) == expected


@pytest.mark.parametrize("count", range(len(TURNS) + 1))
def test_reasoning_is_dropped_as_by_the_oracle_up_to_the_first_final(
    real: HarmonyTokenizer, oracle: HarmonyEncoding, count: int
) -> None:
    """The oracle itself chooses here what is left out."""
    conversation = Conversation(TURNS[:count])
    assert prompt_tokens(conversation, real) == oracle_prompt(oracle, conversation)


def test_reasoning_of_every_turn_before_the_last_final_is_dropped(real: HarmonyTokenizer) -> None:
    """A third turn: the oracle would keep the reasoning of the second one."""
    kept = [message for message in LONG if message.channel != "analysis"]
    assert prompt_tokens(Conversation(LONG), real) == prompt_tokens(Conversation(tuple(kept)), real)


def test_reasoning_before_the_last_final_is_dropped_where_a_call_came_last(real: HarmonyTokenizer) -> None:
    """The oracle would keep all reasoning then."""
    call = (Message("assistant", "Now Paris.", "analysis"), *TURNS[2:4])
    kept = tuple(message for message in TURNS if message.channel != "analysis")
    assert prompt_tokens(Conversation((*TURNS, *call)), real) == prompt_tokens(Conversation((*kept, *call)), real)


def test_reasoning_after_the_last_final_is_kept(real: HarmonyTokenizer) -> None:
    turns = (*TURNS, Message("assistant", "Stopped here", "analysis"), Message("user", "Go on"))
    text = real.tokenizer.decode(prompt_tokens(Conversation(turns), real), skip_special_tokens=False)
    assert "<|start|>assistant<|channel|>analysis<|message|>Stopped here<|end|>" in text
    assert "Sunny." not in text


@MANY
@given(text=texts)
def test_text_becomes_the_tokens_of_the_oracle_and_never_a_control_token(
    real: HarmonyTokenizer, oracle: HarmonyEncoding, text: str
) -> None:
    tokens = real.encode(text)
    assert tokens == oracle.encode(text, disallowed_special=())
    assert max(tokens, default=0) < 199_998  # special tokens come after
    assert real.text.decode(tokens) == text


@pytest.mark.parametrize("name", SPECIAL)
def test_names_of_special_tokens_in_text_are_text(real: HarmonyTokenizer, tiny: HarmonyTokenizer, name: str) -> None:
    for tokenizer in (real, tiny):
        plain = prompt_tokens(Conversation((Message("user", "x"),)), tokenizer)
        special = prompt_tokens(Conversation((Message("user", name),)), tokenizer)
        control = {tokenizer.tokenizer.token_to_id(special_name) for special_name in SPECIAL}
        assert [token for token in special if token in control] == [token for token in plain if token in control]


@MANY
@given(conversation=conversations)
def test_a_vocabulary_of_bytes_says_the_same_text(
    real: HarmonyTokenizer, tiny: HarmonyTokenizer, conversation: Conversation
) -> None:
    shown = [
        tokenizer.tokenizer.decode(prompt_tokens(conversation, tokenizer), skip_special_tokens=False)
        for tokenizer in (real, tiny)
    ]
    assert shown[0] == shown[1]


def test_a_single_message_is_that_of_the_oracle(real: HarmonyTokenizer, oracle: HarmonyEncoding) -> None:
    import json

    for message in LONG:
        expected = oracle._inner.render(
            message_json=json.dumps(oracle_message(message)),
            render_options={"conversation_has_function_tools": False},
        )
        assert message_tokens(message, real) == expected


def test_what_the_tokenizer_adds_by_itself_is_not_added(real: HarmonyTokenizer, tokenizer_json: bytes) -> None:
    """A fine-tuned tokenizer may put a token at the beginning of every text. The format has none there."""
    from tokenizers import processors

    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", 199_998)]
    )
    assert tokenizer.encode("Hello").ids[0] == 199_998
    assert HarmonyTokenizer.of(tokenizer, 201_088).encode("Hello") == real.encode("Hello")


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "ok \udc80"])
def test_unpaired_surrogates_are_refused(tiny: HarmonyTokenizer, text: str) -> None:
    with pytest.raises(UsageError, match=r"half of a surrogate pair; expected Unicode text"):
        prompt_tokens(Conversation((Message("user", text),)), tiny)


def test_what_the_format_cannot_say_is_refused_at_once() -> None:
    """All of it in one error."""
    with pytest.raises(UsageError) as error:
        Conversation(
            (
                Message("robot", ""),  # type: ignore[arg-type]
                Message("tool", "42"),
                Message("assistant", "", "final\nsystem"),
                Message("assistant", "", recipient="a b"),
                Message("user", "", name=""),
            ),
            effort="huge",  # type: ignore[arg-type]
            date="31.1.2026",
            builtin_tools=("shell",),  # type: ignore[arg-type]
            tools=(FunctionTool("a b"), FunctionTool("f"), FunctionTool("f")),
        )
    for problem in (
        "effort: found 'huge', expected low, medium or high",
        "date: found '31.1.2026', expected YYYY-MM-DD",
        "builtin_tools: found 'shell', expected browser or python",
        "tools[0].name: found 'a b', expected a name without white space",
        "tools[2].name: found 'f' a second time, expected a name for each function",
        "messages[0].role: found 'robot', expected one of system, developer, user, assistant, tool",
        "messages[1].name: found none, expected the name of the function that answers",
        "messages[2].channel: found 'final\\nsystem', expected a word without white space",
        "messages[3].recipient: found 'a b', expected a word without white space",
        "messages[4].name: found '', expected a word without white space",
    ):
        assert f"  - {problem}" in str(error.value).split("\n")

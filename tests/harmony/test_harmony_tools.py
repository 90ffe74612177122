"""Declarations of functions are those of openai-harmony, character for character."""

from __future__ import annotations

from typing import Any

import pytest
from harmony_oracle import oracle_prompt
from harmony_strategies import MANY, parameters, tools, values
from hypothesis import example, given
from openai_harmony import HarmonyEncoding

from gptoss_export.errors import UsageError
from gptoss_export.harmony.messages import Conversation, FunctionTool
from gptoss_export.harmony.rendering import developer_text, prompt_tokens
from gptoss_export.harmony.typescript import typescript
from gptoss_export.harmony.vocabulary import HarmonyTokenizer


def declared(oracle: HarmonyEncoding, *tools: FunctionTool) -> str:
    """What openai-harmony puts into the developer message."""
    text = oracle.decode(oracle_prompt(oracle, Conversation((), tools=tools)))
    return text.split("<|start|>developer<|message|>", 1)[1].removesuffix("<|end|><|start|>assistant")


@MANY
@given(schema=parameters)
@example(
    schema={
        "type": "object",
        "properties": {"a": {"oneOf": [{"type": "string", "description": "d"}], "description": "d"}},
    }
)
@example(
    schema={"type": "object", "properties": {"a": {"oneOf": [{"type": "null"}, {"default": "x"}], "description": "d"}}}
)
@example(schema={"type": "object", "properties": {"a": {"oneOf": [], "default": "x", "enum": ["x"]}}})
@example(schema={"oneOf": [{"type": "string", "enum": ["a"], "default": "a", "nullable": True, "description": "d"}]})
@example(schema={"type": ["integer", "null"]})
@example(
    schema={"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "A"}}}
)
@example(schema={"type": "array", "items": None})
@example(schema={})
def test_a_schema_is_the_type_of_the_oracle(oracle: HarmonyEncoding, schema: dict[str, Any]) -> None:
    tool = FunctionTool("f", "Does.", schema)
    assert developer_text(Conversation((), tools=(tool,))) == declared(oracle, tool)


NUMBERS = [
    *(float(f"{digits}e{exponent}") for digits in ("1", "-2.5", "1.2345678") for exponent in range(-9, 22)),
    *(0.0, -0.0, 1e15 - 1, 9007199254740993.0, 0, -1, 2**63, 2**64 - 1, -(2**63), 2**64, 10**20, True, None),
]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_number_is_written_as_by_the_oracle(oracle: HarmonyEncoding, value: float | None) -> None:
    """On both sides of where an exponent begins, and of 64 bits."""
    tool = FunctionTool("f", "", {"type": "object", "properties": {"a": {"type": "number", "default": value}}})
    assert developer_text(Conversation((), tools=(tool,))) == declared(oracle, tool)


@MANY
@given(value=values)
def test_a_default_is_written_as_by_the_oracle(oracle: HarmonyEncoding, value: object) -> None:
    """Numbers with and without exponents, above 64 bits, escapes in text."""
    tool = FunctionTool("f", "", {"type": "object", "properties": {"a": {"type": "object", "default": [value]}}})
    assert developer_text(Conversation((), tools=(tool,))) == declared(oracle, tool)


@MANY
@given(functions=tools.filter(len))
@example(functions=(FunctionTool("f", "one\r\ntwo\n\nfour\r"), FunctionTool("g", "\n", {})))
def test_several_functions_with_descriptions(
    real: HarmonyTokenizer, oracle: HarmonyEncoding, functions: tuple[FunctionTool, ...]
) -> None:
    assert developer_text(Conversation((), tools=functions)) == declared(oracle, *functions)


@pytest.mark.parametrize("names", [("browser",), ("python",), ("python", "browser")])
def test_builtin_tools_are_the_oracles(real: HarmonyTokenizer, oracle: HarmonyEncoding, names: Any) -> None:
    conversation = Conversation((), builtin_tools=names)
    assert prompt_tokens(conversation, real) == oracle_prompt(oracle, conversation)


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="a schema of more than 100 levels"):
        typescript(schema)
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(UsageError, match="a value of more than 100 levels"):
        typescript({"type": "object", "properties": {"a": {"default": value}}})


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (float("nan"), "the number nan"),
        (float("inf"), "the number inf"),
        (10**400, "the number inf"),
        ({1, 2}, r"\{1, 2\}"),
    ],
)
def test_a_value_that_is_no_json_is_refused(value: object, found: str) -> None:
    with pytest.raises(UsageError, match=f"parameters: found {found} in a schema, expected"):
        typescript({"type": "object", "properties": {"a": {"default": [value]}}})

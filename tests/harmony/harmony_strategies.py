"""Texts, conversations and schemas for hypothesis."""

from __future__ import annotations

import os
from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gptoss_export.harmony.messages import Conversation, FunctionTool, Message

EXAMPLES = int(os.environ.get("GPTOSS_EXAMPLES", "100"))  # that each test generates
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

SPECIAL = [
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|call|>",
    "<|return|>",
    "<|endoftext|>",
]
_WORDS = [
    "Hello",
    " world",
    "'s",
    "'LL",
    "\n",
    "\r\n",
    "\t",
    "   ",
    "3.1415",
    "日本語",
    "😀",
    "👩‍👩‍👧",
    "e\u0301",
    "{}",
    "//",
    '"',
    "\\",
    "\x00",
    "\ufeff",
]

texts = st.lists(
    st.one_of(st.sampled_from(SPECIAL + _WORDS), st.text(st.characters(codec="utf-8"), max_size=8)), max_size=6
).map("".join)
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,11}", fullmatch=True)
recipients = names.map(lambda name: f"functions.{name}")
content_types = st.sampled_from([None, "<|constrain|>json", "<|constrain|>", "json", "code"])
channels = st.sampled_from([None, "analysis", "commentary", "final"])

_plain = st.builds(Message, st.sampled_from(["system", "developer", "user"]), texts, name=st.none() | names)
_said = st.builds(Message, st.just("assistant"), texts, channels)
_call = st.builds(
    Message, st.just("assistant"), texts, channels, recipients | st.sampled_from(["all", "python"]), content_types
)
_result = st.builds(Message, st.just("tool"), texts, channels, st.just("assistant") | st.none(), name=recipients)
messages = st.one_of(_plain, _said, _call, _result)


def _is_exact(value: float) -> bool:
    """Whether openai-harmony reads the digits as this number. With a larger exponent it may read one beside it."""
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return isinstance(exponent, int) and abs(exponent) <= 22


_floats = st.builds(
    lambda digits, exponent: float(f"{digits}e{exponent}"), st.integers(0, 10**15), st.integers(-22, 22)
).filter(_is_exact)
_numbers = st.one_of(st.integers(-(2**63), 2**64 - 1), _floats, _floats.map(lambda value: -value), st.just(10**20))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | _numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
_properties = st.sampled_from(["city", "a", "b"]) | names  # few, so that required ones are often there
_KINDS = ["string", "number", "integer", "boolean", "array", "object", "null", "nonsense"]


def _schema(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A schema with any mixture of keys; each of them may also hold what no schema has."""
    members = {
        "type": st.sampled_from(_KINDS) | st.lists(st.sampled_from(_KINDS), max_size=3),
        "description": texts,
        "title": texts,
        "default": values,
        "enum": st.lists(texts | values, max_size=3),
        "examples": st.lists(texts | values, max_size=3),
        "nullable": st.booleans(),
        "items": inner,
        "properties": st.dictionaries(_properties | texts, inner, max_size=4),
        "required": st.lists(_properties, max_size=3),
        "oneOf": st.lists(inner, max_size=3),
        "anyOf": st.lists(inner, max_size=3),
        "$ref": texts,
        "const": values,
        "additionalProperties": st.booleans(),
    }
    wrong = st.none() | st.integers(-9, 9) | texts
    optional = {
        key: value | wrong if key != "type" else value | st.none() | st.integers(-9, 9)
        for key, value in members.items()
    }
    typed = st.fixed_dictionaries(
        {"type": st.sampled_from(_KINDS)}, optional={key: value for key, value in members.items() if key != "type"}
    )
    return typed | st.fixed_dictionaries({}, optional=optional)


schemas: st.SearchStrategy[Any] = st.recursive(st.booleans() | st.builds(dict), _schema, max_leaves=12)


parameters = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(_properties, schemas, max_size=4)},
    optional={"required": st.lists(_properties, max_size=3)},
) | schemas.filter(lambda schema: isinstance(schema, dict))
tools = st.lists(
    st.builds(FunctionTool, names, texts, st.none() | parameters), max_size=3, unique_by=lambda tool: tool.name
).map(tuple)

conversations = st.builds(
    Conversation,
    st.lists(messages, max_size=6).map(tuple),
    effort=st.sampled_from(["low", "medium", "high"]),
    instructions=texts,
    tools=tools,
    date=st.none() | st.dates().map(str),
    knowledge_cutoff=st.just("2024-06") | texts,
    identity=st.just("You are ChatGPT, a large language model trained by OpenAI.") | texts,
    builtin_tools=st.lists(st.sampled_from(["browser", "python"]), unique=True).map(tuple),
)


def without_reasoning_before_the_last_final(conversation: Conversation) -> Conversation:
    """What openai-harmony has to be given so that it leaves out the reasoning of every turn but the last."""
    kept = list(conversation.messages)
    for index in reversed(range(len(kept))):
        if kept[index].channel == "final":
            kept[:index] = [message for message in kept[:index] if message.channel != "analysis"]
            break
    return replace(conversation, messages=tuple(kept))

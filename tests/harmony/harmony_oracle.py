"""openai-harmony on the vocabulary of the real tokenizer, without the network; the same conversations in its terms."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizers import byte_symbols
from openai_harmony import HarmonyEncoding, HarmonyEncodingName, load_harmony_encoding

from gptoss_export.harmony.messages import Conversation, FunctionTool, Message


def write_tiktoken(tokenizer_json: bytes, folder: Path) -> None:
    """The vocabulary as the file that openai-harmony reads: the bytes of each token in base64, and its rank."""
    vocabulary = json.loads(tokenizer_json)["model"]["vocab"]
    values = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    lines = [
        f"{base64.b64encode(bytes(values[symbol] for symbol in token)).decode()} {rank}\n"
        for token, rank in sorted(vocabulary.items(), key=lambda item: item[1])
    ]
    (folder / "o200k_base.tiktoken").write_text("".join(lines), encoding="ascii")


def open_oracle(tokenizer_json: bytes, folder: Path) -> HarmonyEncoding:
    write_tiktoken(tokenizer_json, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


def oracle_prompt(oracle: HarmonyEncoding, conversation: Conversation) -> list[int]:
    """The prompt of openai-harmony, by its inner interface: the outer one leaves out null, also in schemas."""
    return oracle._inner.render_conversation_for_completion(
        conversation_json=json.dumps({"messages": _messages(conversation)}),
        next_turn_role="assistant",
        config={"auto_drop_analysis": True},
    )


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    system = {
        "type": "system_content",
        "model_identity": conversation.identity,
        "reasoning_effort": conversation.effort.capitalize(),
        "knowledge_cutoff": conversation.knowledge_cutoff,
        "conversation_start_date": conversation.date,
        "channel_config": {"valid_channels": ["analysis", "commentary", "final"], "channel_required": True},
        "tools": {name: _builtin(name) for name in conversation.builtin_tools},
    }
    developer: dict[str, Any] = {"type": "developer_content"}
    if conversation.instructions:
        developer["instructions"] = conversation.instructions
    if conversation.tools:
        functions = {
            "name": "functions",
            "description": None,
            "tools": [_function(tool) for tool in conversation.tools],
        }
        developer["tools"] = {"functions": functions}
    found = [{"role": "system", "content": [system]}]
    if len(developer) > 1:
        found.append({"role": "developer", "content": [developer]})
    return found + [oracle_message(message) for message in conversation.messages]


def oracle_message(message: Message) -> dict[str, Any]:
    fields = ("role", "name", "channel", "recipient", "content_type")
    given = {field: getattr(message, field) for field in fields if getattr(message, field) is not None}
    return given | {"content": [{"type": "text", "text": message.content}]}


def _function(tool: FunctionTool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def _builtin(name: str) -> dict[str, Any]:
    """openai-harmony's own words for a builtin tool."""
    from openai_harmony.openai_harmony import get_tool_namespace_config

    return get_tool_namespace_config(name)

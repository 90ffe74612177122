"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
import uuid

from ..harmony.messages import Conversation, FunctionTool
from ..structure.formats import CallableTool, Format, JsonObject, JsonSchema
from .chat_messages import read_messages
from .chat_sinks import ChatChunks, Completion, WholeChat
from .errors import invalid
from .fields import check_stream_options, listed_stops
from .generating import Order
from .ordering import Sampling, Wanted, chosen_function, orders
from .readers import ConversationReader
from .record import Record
from .requests_chat import ChatRequest, ObjectFormat, SchemaFormat
from .served_model import ServedModel
from .serving import Serving, answer
from .settings import ServerSettings
from .sse import Reply
from .turns import format_section, joined
from .validation import parse


async def chat(serving: Serving, record: Record, body: bytes, reply: Reply) -> None:
    """Answer a request for a chat completion."""
    model = serving.model
    asked, given = await asyncio.to_thread(read_request, model, serving.settings, body)
    top = _top_logprobs(asked)
    completion = Completion(model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), top)
    one_value = _format(asked) is not None
    readers = [ConversationReader(model.tokenizer, listed_stops(asked.stop), top is not None, one_value) for _ in given]
    if asked.stream:
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        await answer(serving, record, reply, given, readers, ChatChunks(completion, len(given), reply, usage))
    else:
        await answer(serving, record, reply, given, readers, WholeChat(completion, len(given), reply))


def read_request(model: ServedModel, settings: ServerSettings, body: bytes) -> tuple[ChatRequest, list[Order]]:
    """The request that a body holds, and an order for each answer.

    Raises ApiError, and UsageError for what the chat format or structured output cannot say.
    """
    asked = parse(ChatRequest, body)
    model.check_name(asked.model)
    check_stream_options(asked.stream, asked.stream_options)
    given = asked.tool_choice or "auto"
    choice: str = given if isinstance(given, str) else chosen_function(given.function.name)
    instructions, messages = read_messages(asked.messages)
    format_ = asked.response_format
    if isinstance(format_, SchemaFormat):
        schema = format_.json_schema
        instructions = joined([instructions, format_section(schema.name, schema.description, schema.schema_)])
    functions = [tool.function for tool in asked.tools or ()]
    conversation = Conversation(
        messages,
        effort=asked.reasoning_effort or "medium",
        instructions=instructions,
        tools=tuple(
            FunctionTool(function.name, function.description or "", function.parameters)
            for function in functions
            if choice != "none"
        ),
        date=model.today().isoformat(),
    )
    most, param = asked.max_completion_tokens, "max_completion_tokens"
    if most is None:
        most, param = asked.max_tokens, "max_tokens"
    elif asked.max_tokens not in (None, most):
        raise invalid(
            "max_tokens", f"found {asked.max_tokens} and {param} {most}, expected one number; give one of them"
        )
    wanted = Wanted(
        conversation,
        Sampling(asked, asked.seed, _top_logprobs(asked)),
        model.new_tokens(most, settings.max_new_tokens, param),
        "messages",
        _format(asked),
        tuple(CallableTool(function.name, function.parameters, bool(function.strict)) for function in functions),
        choice,
        asked.n or 1,
    )
    return asked, orders(model, wanted)


def _format(asked: ChatRequest) -> Format | None:
    if isinstance(asked.response_format, SchemaFormat):
        schema = asked.response_format.json_schema
        return JsonSchema(schema.schema_, bool(schema.strict), "response_format.json_schema.schema")
    return JsonObject() if isinstance(asked.response_format, ObjectFormat) else None


def _top_logprobs(asked: ChatRequest) -> int | None:
    if asked.logprobs:
        return asked.top_logprobs or 0
    if asked.top_logprobs:
        raise invalid("top_logprobs", "found without logprobs; set logprobs, or leave it out")
    return None

"""Makes the orders for the engine that a request's answers need."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import UsageError
from ..harmony.messages import Conversation
from ..harmony.rendering import prompt_tokens
from ..runtime.checked_tokens import CheckedTokens
from ..runtime.sampling_params import SamplingParams
from ..structure.formats import CallableTool, Format
from .errors import ApiError, invalid
from .fields import SamplingFields, sampling_params
from .generating import Order
from .served_model import ServedModel

_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class Sampling:
    """How the answers of a request choose their tokens.

    seed          of the first answer; the others have the ones after it. None: any
    top_logprobs  None: no log probabilities
    """

    fields: SamplingFields
    seed: int | None = None
    top_logprobs: int | None = None

    def of_answers(self, count: int, vocab_size: int) -> list[SamplingParams]:
        """The parameters of each answer. Raises ApiError for a bias of what is no token of the model."""
        first = secrets.randbits(63) if self.seed is None else self.seed
        params = sampling_params(self.fields, first, self.top_logprobs or 0)
        wrong = [token for token in params.logit_bias if token >= vocab_size]
        if wrong:
            raise invalid("logit_bias", f"found token {wrong[0]}, expected ids of 0 to {vocab_size - 1}")
        return [params, *(replace(params, seed=_wrapped(first + at)) for at in range(1, count))]


@dataclass(frozen=True)
class Wanted:
    """What a request for answers of a conversation asks for.

    final         the format of the answer's text; None: any
    tools         that can be called, which the conversation declares too
    choice        "none", "auto", "required", or the name of the function that must be called
    new_tokens    most tokens of an answer
    param         the field of the request that holds the conversation, for errors
    adapter       that the answers are computed with; None: the model alone
    """

    conversation: Conversation
    sampling: Sampling
    new_tokens: int
    param: str
    final: Format | None = None
    tools: tuple[CallableTool, ...] = ()
    choice: str = "auto"
    answer_count: int = 1
    adapter: str | None = None


def check_answer_count(count: int, most: int, param: str) -> None:
    """Raise ApiError where one request asks for more answers than the server takes at a time."""
    if count > most:
        raise invalid(param, f"found {count} answers in one request, expected {most} at most; ask for fewer")


def orders(model: ServedModel, wanted: Wanted) -> list[Order]:
    """An order for each answer. A long prompt takes seconds, and so does a schema that was not asked for lately.

    Raises ApiError for a prompt that leaves no room and for a format that cannot be enforced, UsageError for what the
    chat format cannot say.
    """
    said = (message.content for message in wanted.conversation.messages if message.channel != "analysis")
    model.check_bytes((wanted.conversation.instructions, *said), wanted.param)
    masks = []
    try:
        for _ in range(wanted.answer_count):
            masks.append(model.structures.of_answer(wanted.final, wanted.tools, wanted.choice))
    except UsageError as error:
        raise _not_enforced(error) from None
    prompt = CheckedTokens.of(prompt_tokens(wanted.conversation, model.tokenizer), model.vocab_size)
    model.check_room(len(prompt), wanted.param)
    params = wanted.sampling.of_answers(wanted.answer_count, model.vocab_size)
    return [
        Order(prompt, wanted.new_tokens, param, model.answer_stops, mask, wanted.adapter)
        for param, mask in zip(params, masks, strict=True)
    ]


def _not_enforced(error: UsageError) -> ApiError:
    """The error of a format or a choice. Its message begins with the field, or with words for a schema of a tool."""
    message = " ".join(str(error).split())
    field = message.partition(":")[0]
    return ApiError(400, message, param="tools" if " " in field else field)


def chosen_function(name: str) -> str:
    """The choice of one function. Raises ApiError for the words that mean something else as a choice."""
    if name in _CHOICES:
        raise invalid(
            "tool_choice", f"found a function of the name {name}, which cannot be chosen; give it another name"
        )
    return name


def format_param(name: str, final: Format | None, tools: Sequence[CallableTool]) -> str | None:
    """The field of a request that says what its answers look like: `name`, which holds the format of their text, or
    that of the tools. None where both do."""
    if final is None:
        return "tools"
    return None if any(tool.strict for tool in tools) else name


def plain_orders(
    model: ServedModel,
    prompts: Sequence[CheckedTokens],
    sampling: Sampling,
    new_tokens: int,
    answer_count: int,
    adapter: str | None,
) -> list[Order]:
    """An order for each answer of each prompt, which is continued as it is."""
    params = sampling.of_answers(len(prompts) * answer_count, model.vocab_size)
    repeated = [prompt for prompt in prompts for _ in range(answer_count)]
    return [
        Order(prompt, new_tokens, param, model.stop_tokens, adapter=adapter)
        for prompt, param in zip(repeated, params, strict=True)
    ]


def _wrapped(seed: int) -> int:
    """A sum of seeds as a 64-bit integer."""
    return (seed + 2**63) % 2**64 - 2**63

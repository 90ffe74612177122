"""What a conversation's request asks for to orders for the engine."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RunError
from ..harmony.messages import Conversation
from ..harmony.rendering import prompt_tokens
from ..runtime.sampling_params import SamplingParams
from ..structure.formats import CallableTool, Format
from .errors import invalid
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
        """The parameters of each answer. Raises ApiError for a bias that is not by an id of the vocabulary."""
        first = secrets.randbits(63) if self.seed is None else self.seed
        try:
            params = [sampling_params(self.fields, _wrapped(first + at), self.top_logprobs or 0) for at in range(count)]
        except RunError as error:
            raise invalid(None, " ".join(str(error).split())) from None
        wrong = [token for token in params[0].logit_bias if token >= vocab_size]
        if wrong:
            raise invalid("logit_bias", f"found token {wrong[0]}, expected ids of 0 to {vocab_size - 1}")
        return params


@dataclass(frozen=True)
class Wanted:
    """What a request for answers of a conversation asks for.

    final       the format of the answer's text; None: any
    tools       that can be called, which the conversation declares too
    choice      "none", "auto", "required", or the name of the function that must be called
    new_tokens  most tokens of an answer
    param       the field of the request that holds the conversation, for errors
    """

    conversation: Conversation
    sampling: Sampling
    new_tokens: int
    param: str
    final: Format | None = None
    tools: tuple[CallableTool, ...] = ()
    choice: str = "auto"
    answers: int = 1


def orders(model: ServedModel, wanted: Wanted) -> list[Order]:
    """An order for each answer. Takes as long as the prompt is long, and longer for a new schema.

    Raises ApiError for a prompt that leaves no room, UsageError for what the chat format cannot say, and for a schema
    that cannot be compiled.
    """
    named = wanted.choice not in _CHOICES
    if named and wanted.choice not in [tool.name for tool in wanted.tools]:
        raise invalid("tool_choice", f"found {wanted.choice}, expected one of tools")
    if wanted.choice == "required" and not wanted.tools:
        raise invalid("tool_choice", "found required without tools, expected one tool or more")
    prompt = prompt_tokens(wanted.conversation, model.tokenizer)
    masks = [model.structures.of_answer(wanted.final, wanted.tools, wanted.choice) for _ in range(wanted.answers)]
    model.check_room(len(prompt), wanted.param)
    params = wanted.sampling.of_answers(wanted.answers, model.vocab_size)
    return [
        Order(prompt, wanted.new_tokens, param, model.answer_stops, mask)
        for param, mask in zip(params, masks, strict=True)
    ]


def chosen_function(name: str) -> str:
    """The choice of one function. Raises ApiError for the words that mean something else as a choice."""
    if name in _CHOICES:
        raise invalid(
            "tool_choice", f"found a function of the name {name}, which cannot be chosen; give it another name"
        )
    return name


def plain_orders(
    model: ServedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, new_tokens: int, answers: int
) -> list[Order]:
    """An order for each answer of each prompt, which is continued as it is."""
    params = sampling.of_answers(len(prompts) * answers, model.vocab_size)
    repeated = [prompt for prompt in prompts for _ in range(answers)]
    return [Order(prompt, new_tokens, param, model.stop_tokens) for prompt, param in zip(repeated, params, strict=True)]


def _wrapped(seed: int) -> int:
    """A sum of seeds as a 64-bit integer."""
    return (seed + 2**63) % 2**64 - 2**63

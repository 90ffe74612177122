"""How a sequence chooses its tokens: the parameters, without what applies them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real

from ..errors import RunError, raise_all
from ..model.sampling_state import MOST_BIASES, MOST_TOP_LOGPROBS
from ..values import shown, whole_number

_BIASES = f"numbers of -1000 to 1000 by token id, {MOST_BIASES} at most"


@dataclass(frozen=True)
class SamplingParams:
    """How a sequence chooses its tokens.

    temperature         0 takes the most likely token; otherwise logits are divided by it
    top_k               only the k most likely tokens; 0: all
    top_p               only the smallest set of most likely tokens whose probability, among all tokens, reaches p
    seed                any 64-bit integer; the same seed draws the same tokens
    min_p               only tokens whose probability is at least this share of the most likely token's; 0: all
    repetition_penalty  logits of tokens in the prompt or the answer: divided by it if positive, otherwise multiplied
                        (Keskar et al. 2019, as in transformers); 1: none
    presence_penalty    is subtracted from the logits of tokens in the answer (as in OpenAI's API); 0: none
    frequency_penalty   is subtracted for each time that a token is in the answer; 0: none
    logit_bias          is added to the logits of these tokens, by id; up to MOST_BIASES
    min_new_tokens      the stop tokens are not chosen before so many tokens
    top_logprobs        each token comes with so many most likely tokens and their log probabilities, up to
                        MOST_TOP_LOGPROBS

    Penalties and bias change the logits, in the order above, before temperature, top_k, top_p and min_p. The log
    probabilities of tokens are those of the model, without any of it.

    A temperature that float32 does not hold exactly, below 2^-126, is 2^-126 or 0. Then only the most likely tokens are
    drawn, as with 0.

    Raises RunError naming every value that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    min_new_tokens: int = 0
    top_logprobs: int = 0

    @property
    def penalizes(self) -> bool:
        """Whether the choice depends on the tokens before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def limits(self) -> bool:
        """Whether top_k or top_p can leave tokens out."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def adjusts(self) -> bool:
        """Whether logits change before a token is chosen, or others than the chosen one are wanted."""
        return self.penalizes or bool(self.logit_bias) or self.min_new_tokens > 0 or self.top_logprobs > 0

    def __post_init__(self) -> None:
        problems = []
        for name, convert, valid, expected in (
            ("temperature", _number, lambda value: 0 <= value < float("inf"), "a number of 0 or more"),
            ("top_k", whole_number, lambda value: 0 <= value < 2**63, "an integer of 0 (all) to 2**63 - 1"),
            ("top_p", _number, lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
            ("seed", whole_number, lambda value: -(2**63) <= value < 2**63, "a 64-bit integer"),
            ("min_p", _number, lambda value: 0 <= value <= 1, "a number of 0 (all) to 1"),
            ("repetition_penalty", _number, lambda value: 0.01 <= value <= 100, "a number of 0.01 to 100; 1: none"),
            ("presence_penalty", _number, lambda value: -100 <= value <= 100, "a number of -100 to 100; 0: none"),
            ("frequency_penalty", _number, lambda value: -100 <= value <= 100, "a number of -100 to 100; 0: none"),
            ("logit_bias", _biases, lambda value: len(value) <= MOST_BIASES, _BIASES),
            ("min_new_tokens", whole_number, lambda value: 0 <= value < 2**31, "an integer of 0 or more"),
            (
                "top_logprobs",
                whole_number,
                lambda value: 0 <= value <= MOST_TOP_LOGPROBS,
                f"an integer of 0 (none) to {MOST_TOP_LOGPROBS}",
            ),
        ):
            value = convert(getattr(self, name))
            if value is None or not valid(value):
                problems.append(f"{name}: found {shown(getattr(self, name))}, expected {expected}")
            else:
                object.__setattr__(self, name, value)  # numbers of other libraries become Python's
        raise_all(RunError, "sampling parameters out of range", problems)


def _biases(values: object) -> dict[int, float] | None:
    """Biases by token id, whose keys may be text as in JSON; None for anything else."""
    if not isinstance(values, Mapping):
        return None
    found: dict[int, float] = {}
    for key, value in values.items():
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else whole_number(key)
        number = _number(value)
        if token is None or token < 0 or number is None or not -1000 <= number <= 1000:
            return None
        found[token] = number
    return found


def _number(value: object) -> float | None:
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0
    except OverflowError:
        return None

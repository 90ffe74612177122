"""What each slot chooses its tokens by: the tensors that programs read, and the numbers that fix what they mean.

Imports no torch: a manifest is checked, and a token is chosen in numpy, where there is none. `choice` computes with
these tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

LOWEST_TEMPERATURE = 2.0**-126  # the smallest normal number of float32: a GPU may take smaller ones for 0
MOST_BIASES, MOST_TOP_LOGPROBS = 1024, 20
MASK_WORD = 32  # tokens of a word of a mask of allowed tokens, a bit each
IN_PROMPT = 1 << 30  # in a count: the token is in the prompt; below: how often it is in the answer
# Random numbers are a hash of seed, position and token id: SplitMix64's odd multipliers and its finalizer (Steele, Lea,
# Flood 2014), as unsigned 64-bit numbers. Both samplers compute it.
SEED_FACTOR, POSITION_FACTOR, TOKEN_FACTOR = 0x1E3779B97F4A7C15, 0x3C6EF372FE94F82B, 0x5851F42D4C957F2D
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Choice(IntEnum):
    """How a step chooses the next tokens. A later one includes those before it, and takes longer.

    MOST_LIKELY  every sequence takes its most likely token
    DRAWN        some are drawn at random
    LIMITED      some are drawn from the tokens that top_k or top_p keeps
    ADJUSTED     the logits of some change before (`SamplingParams.adjusts`), or not all tokens are allowed
    """

    MOST_LIKELY = 0
    DRAWN = 1
    LIMITED = 2
    ADJUSTED = 3


@dataclass(frozen=True)
class SlotState:
    """A tensor [slots, *shape] of all slots.

    dtype  torch's name without `torch.`
    start  what is in a slot that nobody has set
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: float


# What a drawn token depends on, as SamplingParams has it.
DRAWING = (
    SlotState("temperature", (), "float32", 0),
    SlotState("top_k", (), "int64", 0),
    SlotState("top_p", (), "float32", 1),
    SlotState("seed", (), "int64", 0),
    SlotState("min_p", (), "float32", 0),
)

# What changes logits, as SamplingParams has it.
PENALTIES = (
    SlotState("repetition_penalty", (), "float32", 1),
    SlotState("presence_penalty", (), "float32", 0),
    SlotState("frequency_penalty", (), "float32", 0),
)


def mask_words(vocabulary: int) -> int:
    """Words of a mask of tokens."""
    return -(-vocabulary // MASK_WORD)


def adjusting(vocabulary: int) -> tuple[SlotState, ...]:
    """What an adjusted choice depends on as well.

    PENALTIES, and

    counts            of each token in the answer; plus IN_PROMPT where it is in the prompt
    bias_ids, biases  unused: id 0, value 0
    allowed           a bit for each token that can be chosen
    stops             a bit for each stop token
    until             the first position after which stop tokens can be chosen
    """
    words = mask_words(vocabulary)
    return (
        *PENALTIES,
        SlotState("counts", (vocabulary,), "int32", 0),
        SlotState("bias_ids", (MOST_BIASES,), "int64", 0),
        SlotState("biases", (MOST_BIASES,), "float32", 0),
        SlotState("allowed", (words,), "int32", -1),
        SlotState("stops", (words,), "int32", 0),
        SlotState("until", (), "int64", -1),
    )

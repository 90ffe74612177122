"""A caller's prompts and options to requests that the artifact can run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..artifact.manifest import Manifest
from ..errors import RunError
from ..model.sampling_state import mask_words
from .adapter_memory import LoadedAdapter
from .arguments import integer, sampling_params, sequence, token_ids
from .checked_tokens import CheckedTokens
from .running_sequence import Request
from .sampling_params import SamplingParams
from .slots import Slots


def checked_mask(
    allowed: Callable[[Sequence[int]], bytes] | None, vocabulary: int
) -> Callable[[Sequence[int]], bytes] | None:
    """`allowed` of a request, with a check of each mask: RunError for another size, and for a mask without a token."""
    if allowed is None:
        return None
    size = 4 * mask_words(vocabulary)

    def checked(tokens: Sequence[int]) -> bytes:
        mask = bytes(allowed(tokens))
        if len(mask) != size:
            raise RunError(f"allowed: found a mask of {len(mask)} bytes, expected {size}: a bit for each token")
        if int.from_bytes(mask, "little") & ((1 << vocabulary) - 1) == 0:
            raise RunError("allowed: found a mask without a token, expected one or more")
        return mask

    return checked


def checked_requests(
    manifest: Manifest,
    slots: Slots,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sequence[SamplingParams] | None,
    stop_tokens: Sequence[int] | None,
    keep_logits: bool = False,
    adapters: Sequence[LoadedAdapter | None] | None = None,
) -> list[Request]:
    """A request for each prompt, which fits into a slot. sampling None: the most likely tokens. stop_tokens None: the
    artifact's. adapters None: the model alone.

    Raises RunError for tokens outside of the vocabulary, no tokens, more than the context holds, a number of new tokens
    below 1, and sampling parameters or adapters that are none or not one for each prompt.
    """
    vocabulary, context = manifest.model.vocab_size, slots.max_context
    listed = sequence("prompts", prompts, "prompts")
    max_new_tokens = integer("max_new_tokens", max_new_tokens)
    if max_new_tokens < 1:
        raise RunError(f"max_new_tokens: found {max_new_tokens}, expected 1 or more")
    params = sampling_params(sampling, len(listed))
    checked = []
    for index, prompt in enumerate(listed):
        name = "prompt" if len(listed) == 1 else f"prompt {index}"
        known = isinstance(prompt, CheckedTokens) and prompt.vocab_size == vocabulary
        ids = prompt if known else token_ids("token", prompt, vocabulary)
        if not ids:
            raise RunError(f"{name}: no tokens, expected one or more")
        if len(ids) > context:
            raise RunError(f"{name}: {len(ids)} tokens exceed the context of {context} ({slots.limit})")
        wrong = [token for token in params[index].logit_bias if token >= vocabulary]
        if wrong:
            raise RunError(f"{name}: logit_bias of token {wrong[0]}, expected ids of 0 to {vocabulary - 1}")
        checked.append(ids)
    given = manifest.stop_tokens if stop_tokens is None else token_ids("stop token", stop_tokens, vocabulary)
    stops = frozenset(given)
    of_prompts = [None] * len(listed) if adapters is None else adapters
    if len(of_prompts) != len(listed):
        raise RunError(f"adapters: {len(of_prompts)} for {len(listed)} prompts, expected one (or None) for each")
    return [
        Request(ids, max_new_tokens, param, stops, keep_logits, adapter=adapter)
        for ids, param, adapter in zip(checked, params, of_prompts, strict=True)
    ]

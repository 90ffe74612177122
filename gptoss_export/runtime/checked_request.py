"""A caller's prompt and options to a request that the artifact can run."""

from __future__ import annotations

from collections.abc import Sequence

from ..artifact.manifest import Manifest
from ..errors import RunError
from .arguments import integer, token_ids
from .sampling_params import SamplingParams
from .scheduler import Request


def checked_request(
    manifest: Manifest,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: SamplingParams,
    stop_tokens: Sequence[int] | None,
    keep_logits: bool,
    name: str = "prompt",
) -> Request:
    """The request. stop_tokens None: the artifact's. `name` is the prompt's in errors.

    Raises RunError for tokens outside of the vocabulary, no tokens, more than the context holds, and a number of new
    tokens below 1.
    """
    vocabulary, context = manifest.model.vocab_size, manifest.sizes.max_context
    max_new_tokens = integer("max_new_tokens", max_new_tokens)
    if max_new_tokens < 1:
        raise RunError(f"max_new_tokens: found {max_new_tokens}, expected 1 or more")
    ids = token_ids("token", prompt, vocabulary)
    if not ids:
        raise RunError(f"{name}: no tokens, expected one or more")
    if len(ids) > context:
        raise RunError(f"{name}: {len(ids)} tokens exceed the context of {context} (--max-context of the build)")
    given = manifest.stop_tokens if stop_tokens is None else token_ids("stop token", stop_tokens, vocabulary)
    return Request(ids, max_new_tokens, sampling, frozenset(given), keep_logits)

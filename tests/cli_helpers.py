"""What the tests of the command line share: calling it in this process, and what Hugging Face's model expects."""

from __future__ import annotations

import signal
import warnings
from typing import Any

import torch
from click.testing import CliRunner, Result

from gptoss_export.cli import main


def invoke(*arguments: object) -> Result:
    """Run the command line in this process, and leave the process's signal handlers and warnings alone."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with warnings.catch_warnings():
            return CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def greedy_tokens(model: Any, prompt: list[int], count: int) -> list[int]:
    """The most likely continuation, by Hugging Face's model without a KV cache."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def token_logprobs(model: Any, tokens: list[int]) -> list[float]:
    """The log probability of each token after the first, by Hugging Face's model."""
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
    return [logprobs[index, token].item() for index, token in enumerate(tokens[1:])]

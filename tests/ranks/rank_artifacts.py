"""Models of odd shapes that ranks share, and what transformers makes of the same checkpoint."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from transformers import GptOssForCausalLM, Mxfp4Config

from gptoss_export import Runner
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers

# Two ranks: three heads a key head, three groups of columns, of which rank 0 has two, and an odd vocabulary.
ODD = dataclasses.replace(
    with_layers(PRESETS["tiny"], 2),
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=517,
    num_local_experts=5,
    num_experts_per_tok=2,
)
# Four ranks with parts of the same sizes, which run the same programs.
EVEN = dataclasses.replace(
    ODD, num_attention_heads=8, num_key_value_heads=4, intermediate_size=128, vocab_size=516, num_local_experts=8
)


def transformer_of(checkpoint: Path) -> GptOssForCausalLM:
    """Hugging Face's model of a checkpoint, in float32."""
    return (
        GptOssForCausalLM.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            attn_implementation="eager",
            quantization_config=Mxfp4Config(dequantize=True),
        )
        .eval()
        .float()
    )


@torch.inference_mode()
def expected_logits(model: GptOssForCausalLM, tokens: list[int]) -> torch.Tensor:
    """The logits after each token."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


def all_of(runner: Runner, tokens: list[int], slot: int = 0) -> torch.Tensor:
    """The same by an artifact."""
    runner.reset(slot)
    return torch.cat([torch.as_tensor(block).clone() for block in runner.prefill_logits(tokens, slot)])


def other_ranks(of: int | None = None) -> list[int]:
    """The processes of the ranks that a process has started, in the order of the ranks."""
    parent, found = str(os.getpid() if of is None else of), []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = (path / "stat").read_text().rpartition(")")[2].split()[1] == parent
            if ours and b"gptoss_export.rank_worker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return sorted(found)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pids: list[int], seconds: float = 10.0) -> float:
    """Wait until processes have ended; the seconds that it took. Raises AssertionError where they do not."""
    begin = time.monotonic()
    while any(map(is_running, pids)):
        assert time.monotonic() - begin < seconds, f"still running: {[pid for pid in pids if is_running(pid)]}"
        time.sleep(0.02)
    return time.monotonic() - begin


@contextmanager
def ended_afterwards(pids: list[int]) -> Iterator[None]:
    """Processes that a test has stopped do not outlive it."""
    try:
        yield
    finally:
        for pid in pids:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)

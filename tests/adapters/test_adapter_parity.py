"""Adapters at run time against PEFT on transformers, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_samples import Oracle

from gptoss_export import Engine, Runner
from gptoss_export.verification.metric import Deviation, deviation

CLOSE = Deviation(1e-4, 2e-5)
Oracles = dict[str | None, Oracle]


def prefilled(runner: Runner, tokens: list[int], slot: int) -> torch.Tensor:
    """The logits after each token of a prompt."""
    return torch.cat([torch.as_tensor(block) for block in runner.prefill_logits(tokens, slot)])


def test_different_adapters_and_none_in_one_batch(
    eager: Runner, adapters: dict[str, Path], oracles: Oracles, sequence: list[int]
) -> None:
    """Prompts that end around a chunk and past the sliding window, then steps of all of them at once."""
    for name in "attention", "experts", "both":
        eager.load_adapter(name, adapters[name])
    assert eager.adapters == ("attention", "experts", "both")
    used: list[tuple[str | None, int]] = [("both", 65), (None, 40), ("attention", 200), ("experts", 64)]
    prompts = [sequence[40 * slot :] for slot in range(4)]
    wanted = [oracles[name].logits(prompts[slot][: length + 6]) for slot, (name, length) in enumerate(used)]
    plain = [oracles[None].logits(prompts[slot][: length + 6]) for slot, (_, length) in enumerate(used)]
    for slot, (name, length) in enumerate(used):
        eager.reset(slot, name)
        found = prefilled(eager, prompts[slot][:length], slot)
        assert deviation(found, wanted[slot][:length]).within(CLOSE), (name, deviation(found, wanted[slot][:length]))
        assert name is None or deviation(found, plain[slot][:length]).rms > 0.05
    for step in range(6):
        at = [length + step for _, length in used]
        logits = torch.as_tensor(eager.decode([prompts[slot][at[slot]] for slot in range(4)]))
        for slot, (name, _) in enumerate(used):
            assert deviation(logits[slot], wanted[slot][at[slot]]).within(CLOSE), (name, step)


@pytest.mark.parametrize("width", [1, 4])
def test_generated_tokens(
    eager: Runner, adapters: dict[str, Path], oracles: Oracles, sequence: list[int], width: int
) -> None:
    names = ["some", None, "attention", "both"][:width]
    for name in names:
        if name is not None:
            eager.load_adapter(name, adapters[name])
    prompts = [sequence[at : at + 20 + at] for at in range(width)]
    found = eager.generate_batch(prompts, 12, stop_tokens=(), adapters=names)
    for name, prompt, generation in zip(names, prompts, found, strict=True):
        assert generation.tokens == oracles[name].continued(prompt, 12), name
    assert eager.generate(prompts[0], 12, stop_tokens=()).tokens == oracles[None].continued(prompts[0], 12)


def test_prompts_of_different_adapters_share_a_chunk(
    eager: Runner, adapters: dict[str, Path], oracles: Oracles, sequence: list[int]
) -> None:
    """Through an engine: the first chunk of 64 tokens holds segments of all three."""
    eager.load_adapter("attention", adapters["attention"])
    eager.load_adapter("experts", adapters["experts"])
    names, prompts = ["experts", None, "attention"], [sequence[:16], sequence[16:36], sequence[36:47]]
    with Engine(eager) as engine:
        found = engine.generate(prompts, 8, stop_tokens=(), adapters=names)
    for name, prompt, generation in zip(names, prompts, found, strict=True):
        assert generation.tokens == oracles[name].continued(prompt, 8), name


def test_a_sequence_that_is_forked_keeps_its_adapter(
    eager: Runner, adapters: dict[str, Path], oracles: Oracles, sequence: list[int]
) -> None:
    eager.load_adapter("both", adapters["both"])
    eager.reset(0, "both")
    eager.prefill(sequence[:70])
    eager.fork(0, 2)
    logits = torch.as_tensor(eager.decode([None, None, sequence[70], None]))[2]
    assert deviation(logits, oracles["both"].logits(sequence[:71])[-1]).within(CLOSE)


def test_what_comes_after_a_generation_has_no_adapter_unless_it_is_asked_for(
    eager: Runner, adapters: dict[str, Path], oracles: Oracles, sequence: list[int]
) -> None:
    eager.load_adapter("both", adapters["both"])
    eager.generate_batch([sequence[:5], sequence[:9]], 3, adapters=["both", "both"])
    eager.generate(sequence[:9], 3)
    plain, adapted = (oracles[name].logits(sequence[:30])[-1] for name in (None, "both"))
    assert deviation(torch.as_tensor(eager.prefill(sequence[:30], 1)), plain).within(CLOSE)
    eager.reset(adapter="both")
    eager.score(sequence[:9])  # which replaces the sequence
    eager.reset(1)
    assert deviation(torch.as_tensor(eager.prefill(sequence[:30], 1)), plain).within(CLOSE)
    assert deviation(torch.as_tensor(eager.prefill(sequence[:30], 2)), adapted).within(CLOSE)

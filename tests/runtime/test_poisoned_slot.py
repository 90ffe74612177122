"""A slot that held NaN or infinity serves the next sequence: no bit of a clean run changes, of it or its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from gptoss_export import Runner
from gptoss_export.artifact.calls import Role
from gptoss_export.errors import RunError
from gptoss_export.model.kv_cache import PAGE

FILLS = [float("nan"), float("inf")]
BROKEN, INTACT = 511, 510  # the embedding of the first is made NaN; the sequences here do not have it

pytestmark = pytest.mark.torch_tensors


@pytest.fixture(autouse=True)
def clean_caches(loaded: Runner) -> Iterator[None]:
    """The runner is shared: what these tests leave behind must not decide other tests."""
    yield
    with torch.inference_mode():
        for cache in caches(loaded):
            cache.zero_()


def caches(runner: Runner) -> list[torch.Tensor]:
    inputs = runner.executor.programs["decode_3"].inputs  # type: ignore[attr-defined]
    return [inputs[item.name] for item in runner.manifest.programs["decode_3"].inputs_of(Role.CACHE)]


def poison(runner: Runner, slot: int | None, fill: float, first: int = 0) -> None:
    """Fill what a slot's pages hold of positions from `first` on, and the scratch page. None: all pages."""
    assert runner.slots.pages is not None
    held = {} if slot is None else runner.slots.pages.pages(slot)
    places = [(page, max(0, first - PAGE * at)) for pages in held.values() for at, page in enumerate(pages) if page]
    with torch.inference_mode():
        for cache in caches(runner):
            cache[slice(None) if slot is None else 0] = fill
            for page, row in places:
                cache[page, :, row:] = fill


def logits_of(runner: Runner, tokens: list[int], slot: int = 0) -> torch.Tensor:
    """After every token of a prompt, whose last chunk is padded, and of two steps."""
    prompt, steps = tokens[:-2], tokens[-2:]
    rows = [block.clone() for block in runner.prefill_logits(prompt, slot)]
    for token in steps:
        given: list[int | None] = [None] * 3
        given[slot] = token
        rows.append(runner.decode(given)[slot : slot + 1].clone())
    return torch.cat(rows)


@contextmanager
def broken_embedding(runner: Runner, token: int = BROKEN) -> Iterator[None]:
    """While it is active, the embedding of a token is NaN."""
    name, programs = "model.embed_tokens.weight", runner.executor.programs.values()  # type: ignore[attr-defined]
    holders = [program.inputs for program in programs if name in program.inputs]
    whole = holders[0][name]
    broken = whole.clone()
    broken[token] = float("nan")
    try:
        for inputs in holders:
            inputs[name] = broken
        yield
    finally:
        for inputs in holders:
            inputs[name] = whole


@pytest.mark.parametrize("fill", FILLS)
def test_reset_recovers_a_slot(runner: Runner, sequence: list[int], fill: float) -> None:
    """Sliding layers have given pages back. The next sequence takes pages that are poisoned, all of them."""
    tokens = sequence[:150]
    clean = logits_of(runner, tokens)
    poison(runner, None, fill)
    assert runner.decode([tokens[0], None, None])[0].isnan().any()  # the test would show it
    runner.reset(0)
    assert torch.equal(logits_of(runner, tokens), clean)


@pytest.mark.parametrize("fill", FILLS)
def test_neighbours_are_not_touched(runner: Runner, sequence: list[int], fill: float) -> None:
    """Both runs are steps of two sequences: another width may round otherwise."""

    def rows(poisoned: bool) -> torch.Tensor:
        runner.reset()
        runner.prefill(sequence[:9], 0)
        if poisoned:
            poison(runner, 0, fill)
        runner.prefill(sequence[:38], 1)
        return torch.stack([runner.decode([sequence[9], token, None])[:2].clone() for token in sequence[38:40]])

    clean, found = rows(poisoned=False), rows(poisoned=True)
    assert all(row.isnan().any() for row in found[:, 0]) and torch.equal(found[:, 1], clean[:, 1])


@pytest.mark.parametrize("fill", FILLS)
def test_rows_behind_a_sequence_do_not_matter(runner: Runner, sequence: list[int], fill: float) -> None:
    """What a rolled back step or the padding of a chunk may have left there."""
    runner.prefill(sequence[:20])
    clean = runner.decode([sequence[20], None, None])[0].clone()
    runner.truncate(20)
    poison(runner, 0, fill, first=20)
    assert torch.equal(runner.decode([sequence[20], None, None])[0], clean)


@pytest.mark.parametrize("in_a_step", [False, True])
def test_truncate_to_before_a_broken_token(runner: Runner, sequence: list[int], in_a_step: bool) -> None:
    """It has spoiled no token before it, not even in its own chunk, and all tokens after it."""
    start, rest = sequence[:30], sequence[30:50]
    assert BROKEN not in start + rest

    def run(token: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        runner.reset()
        if in_a_step:
            rows = torch.cat([*runner.prefill_logits(start), runner.decode([token, None, None])[:1].clone()])
        else:
            rows = torch.cat(list(runner.prefill_logits([*start, token, *rest[:3]])))
        runner.truncate(30)
        return rows[:30], rows[30:], logits_of(runner, rest)

    before, after, again = run(INTACT)
    assert torch.isfinite(after).all()
    with broken_embedding(runner):
        before_broken, after_broken, again_broken = run(BROKEN)
    assert after_broken.isnan().any(dim=-1).all()
    assert torch.equal(before_broken, before)
    assert torch.equal(again_broken, again)


def test_a_slot_serves_again_after_its_run_error(runner: Runner, sequence: list[int]) -> None:
    clean = runner.generate(sequence[:20], 4, stop_tokens=(), keep_logits=True)
    with broken_embedding(runner), pytest.raises(RunError, match="expected a finite number"):
        runner.generate([*sequence[:20], BROKEN], 4, stop_tokens=())
    again = runner.generate(sequence[:20], 4, stop_tokens=(), keep_logits=True)
    assert again.tokens == clean.tokens
    assert all(torch.equal(row, want) for row, want in zip(again.logits, clean.logits, strict=True))


def test_broken_padding_does_not_matter(runner: Runner, sequence: list[int]) -> None:
    """Padding and idle slots have token 0, whose embedding is NaN here."""
    tokens = [token for token in sequence[:24] if token]
    clean = logits_of(runner, tokens)
    runner.reset()
    with broken_embedding(runner, token=0):
        assert torch.equal(logits_of(runner, tokens), clean)

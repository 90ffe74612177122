"""Four ranks with two experts each compute what one computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_artifacts import all_of, expected_logits, transformer_of

from gptoss_export import load
from gptoss_export.verification.metric import TOLERANCES, deviation

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6] * 12


@pytest.mark.usefixtures("no_ranks_are_left")
def test_four_ranks_against_transformers(of_four: Path) -> None:
    runner, model = load(of_four / "artifact"), transformer_of(of_four / "checkpoint")
    vocabulary = runner.manifest.model.vocab_size
    tokens = torch.randint(0, vocabulary, (150,), generator=torch.Generator().manual_seed(4)).tolist()
    assert deviation(all_of(runner, tokens), expected_logits(model, tokens)).within(TOLERANCES[torch.float32])
    result = runner.generate(PROMPT, 20, stop_tokens=())
    expected = expected_logits(model, [*PROMPT, *result.tokens])[len(PROMPT) - 1 : -1]
    assert result.tokens == expected.argmax(dim=-1).tolist()

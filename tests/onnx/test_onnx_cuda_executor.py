"""The CUDA executor over a model that only records its calls, without a GPU: chunks, padding, idle slots, captures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from onnx_helpers import CUDA_CONFIG, cuda_artifact

from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.runtime.runner import Runner
from gptoss_export.targets.onnx.executor_cuda import CudaExecutor

VOCABULARY = CUDA_CONFIG.vocab_size


class RecordingModel:
    """Says which calls it got. Its most likely token is the number of the calls before."""

    device = torch.device("cpu")
    kv_cache_bytes = 123

    def __init__(self) -> None:
        self.prefills: list[tuple[list[int], int, int, int, bool]] = []
        self.positions: list[list[int]] = []
        self.tokens: list[list[int]] = []
        self.shapes: set[tuple[int, int]] = {(16, 1), (64, 1)}

    @property
    def known_shapes(self) -> int:
        return len(self.shapes)

    def prefill(self, tokens: Sequence[int], slot: int, start: int, rows: int, last_only: bool) -> torch.Tensor:
        self.prefills.append((list(tokens), slot, start, rows, last_only))
        count = 1 if last_only else len(tokens)
        self.shapes.add((rows, count))
        return self._logits(count)

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.tokens.append(tokens.tolist())
        self.positions.append(positions.tolist())
        return self._logits(len(tokens))

    def _logits(self, rows: int) -> torch.Tensor:
        logits = torch.zeros(rows, VOCABULARY, dtype=torch.bfloat16)
        logits[:, len(self.prefills) + len(self.positions)] = 1
        return logits


@pytest.fixture
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, RecordingModel]:
    _, artifact = cuda_artifact(tmp_path_factory)
    manifest = dataclasses.replace(load_manifest(artifact), dtype="bfloat16")
    model = RecordingModel()
    executor = CudaExecutor(manifest, model)  # type: ignore[arg-type]
    return Runner(manifest, Path(artifact), executor, {}), model


def test_a_prompt_is_padded_to_chunks(parts):
    """80 tokens: a chunk of 64, then 16 in the smallest chunk that takes them; a rest of 5 in a chunk of 16."""
    runner, model = parts
    logits = runner.prefill(list(range(80)))
    runner.prefill([1, 2, 3, 4, 5])
    assert model.prefills == [
        (list(range(64)), 0, 0, 64, True),
        (list(range(64, 80)), 0, 64, 16, True),
        ([1, 2, 3, 4, 5], 0, 80, 16, True),
    ]
    assert logits.shape == (VOCABULARY,)
    assert logits.dtype == torch.float32
    assert int(logits.argmax()) == 2  # of the second call, the last of the prompt
    assert runner.length() == 85
    assert runner.executor.kv_cache_bytes == 123


def test_logits_of_every_token_come_in_blocks(parts):
    runner, model = parts
    assert [len(rows) for rows in runner.prefill_logits(list(range(80)))] == [64, 16]
    assert [last_only for *_, last_only in model.prefills] == [False, False]


def test_an_idle_slot_is_at_the_row_behind_its_last(parts):
    runner, model = parts
    runner.prefill([1, 2, 3], 0)
    runner.prefill([4] * 20, 1)
    runner.decode([7, None, None])
    runner.decode([None, 8, None])
    assert model.positions == [[3, 20, 0], [4, 20, 0]]
    assert model.tokens[0][0] == 7
    assert model.tokens[1][1] == 8
    assert (runner.length(0), runner.length(1), runner.length(2)) == (4, 21, 0)


def test_a_new_shape_drops_the_captured_steps(parts):
    runner, _ = parts
    captured = runner.executor.steps[3].captured
    captured[False] = object()
    runner.prefill([1, 2, 3])  # 16 rows, one of logits: known since the model was loaded
    assert captured
    list(runner.prefill_logits([1, 2, 3]))  # three rows of logits
    assert not captured
    captured[False] = object()
    list(runner.prefill_logits([4, 5, 6]))
    assert captured


def test_generation(parts):
    """Tokens of the prompt's call and of the steps after it, each step at the position behind the one before."""
    runner, model = parts
    found = runner.generate_batch([[1, 2, 3], [4, 5]], 3, stop_tokens=())
    assert [generation.tokens for generation in found] == [[1, 3, 4], [2, 3, 4]]
    assert model.positions == [[3, 2, 0], [4, 3, 0]]
    assert [tokens[:2] for tokens in model.tokens] == [[1, 2], [3, 3]]

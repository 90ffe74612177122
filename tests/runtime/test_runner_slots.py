"""The slots of a loaded artifact: which buffers they share, what a call leaves in them, which call owns them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptoss_export import Runner, load
from gptoss_export.artifact.programs import Role
from gptoss_export.errors import RunError

WINDOW, CHUNK = 32, 64


def test_a_step_of_idle_slots_alone_changes_nothing(runner: Runner, sequence: list[int]) -> None:
    runner.generate(sequence[:19], 1, stop_tokens=())
    untouched = runner.decode([7, None, None])[0].clone()
    runner.generate(sequence[:19], 1, stop_tokens=())
    runner.decode([None, None, None])
    assert torch.equal(runner.decode([7, None, None])[0], untouched)


def test_generation_stops_at_the_context(runner: Runner) -> None:
    limit = runner.manifest.sizes.max_context
    result = runner.generate([1] * (limit - 3), 50, stop_tokens=())
    assert result.finish == "context" and len(result.tokens) == 4
    assert runner.length() == limit


def test_truncate_says_which_positions_are_held(runner: Runner, sequence: list[int]) -> None:
    runner.prefill(sequence[:250])
    with pytest.raises(RunError, match="hold positions 154 to 249 only"):
        runner.truncate(150)
    assert runner.length() == 250


def test_a_stream_that_another_call_overtook_is_refused(runner: Runner, sequence: list[int]) -> None:
    stream = runner.stream(sequence[:10], 20, stop_tokens=())
    next(stream)
    runner.prefill(sequence[:3], slot=1)
    with pytest.raises(RunError, match="another call used this runner"):
        next(stream)
    blocks = runner.prefill_logits(sequence[:200], slot=2)
    next(blocks)
    runner.reset(2)
    with pytest.raises(RunError, match="another call used this runner"):
        next(blocks)


def test_reset_of_one_slot_leaves_the_others(runner: Runner, sequence: list[int]) -> None:
    for slot in range(3):
        runner.prefill(sequence[: 4 + slot], slot)
    runner.reset(1)
    assert [runner.length(slot) for slot in range(3)] == [4, 0, 6]
    runner.reset()
    assert [runner.length(slot) for slot in range(3)] == [0, 0, 0]


def test_score_takes_the_place_of_what_the_slot_holds(runner: Runner, sequence: list[int]) -> None:
    alone = runner.score(sequence[:20])
    runner.prefill(sequence[300:340], slot=1)
    assert torch.equal(runner.score(sequence[:20], slot=1), alone)
    assert runner.length(1) == 20


def test_a_refused_score_leaves_the_slot(runner: Runner, sequence: list[int]) -> None:
    runner.prefill(sequence[:7])
    with pytest.raises(RunError):
        runner.score([1] * 5000)
    assert runner.length() == 7


def test_weights_and_caches_are_shared_by_all_programs(loaded: Runner) -> None:
    programs = loaded.executor.programs  # type: ignore[attr-defined]
    decode = programs["decode_3"].inputs
    for name, signature in loaded.manifest.programs.items():
        for item in signature.inputs:
            if item.role != Role.DATA and item.name in decode:
                assert programs[name].inputs[item.name].data_ptr() == decode[item.name].data_ptr()


def test_whole_weights_are_mapped_not_copied(loaded: Runner) -> None:
    """Stored tensors that a program takes as they are (MXFP4 blocks and scales) stay where the file is mapped."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        tuple(int(bound, 16) for bound in fields[0].split("-"))
        for fields in maps
        if len(fields) > 5 and fields[5].endswith(".safetensors")
    ]
    blocks = {name: tensor for name, tensor in _weights(loaded).items() if name.endswith(("_blocks", "_scales"))}
    assert len(blocks) == 4 * loaded.manifest.model.num_hidden_layers
    for name, tensor in blocks.items():
        assert any(low <= tensor.data_ptr() < high for low, high in mapped), name


def _weights(runner: Runner) -> dict[str, torch.Tensor]:
    inputs = runner.executor.programs["decode_3"].inputs  # type: ignore[attr-defined]
    return {item.name: inputs[item.name] for item in runner.manifest.programs["decode_3"].inputs_of(Role.WEIGHT)}


def test_sliding_layers_hold_window_and_chunk_only(loaded: Runner) -> None:
    rows = {item.name: item.shape[2] for item in loaded.manifest.programs["decode_3"].inputs_of(Role.CACHE)}
    assert rows["k_cache.0"] == rows["v_cache.2"] == WINDOW + CHUNK + 1
    assert rows["k_cache.1"] == rows["v_cache.3"] == 4400 + 1
    assert loaded.executor.ring_rows == WINDOW + CHUNK
    each = 3 * 2 * 32 * 4  # bytes of a row: slots, heads, head_dim, float32
    assert loaded.executor.kv_cache_bytes == 2 * each * 2 * (WINDOW + CHUNK + 1 + 4400 + 1)


def test_loads_again_beside_another(artifact: Path, loaded: Runner, sequence: list[int]) -> None:
    second = load(artifact)
    loaded.reset()
    loaded.prefill(sequence[:5])
    assert second.length() == 0
    assert torch.equal(second.prefill(sequence[:40]), second.prefill(sequence[:40], slot=1))
    assert torch.equal(second.prefill(sequence[:40], slot=2), _fresh(loaded, sequence[:40]))


def _fresh(runner: Runner, tokens: list[int]) -> torch.Tensor:
    runner.reset()
    return runner.prefill(tokens)

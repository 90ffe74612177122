"""The slots of a loaded artifact: which buffers they share, what a call leaves in them, which call owns them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptoss_export import Runner, load
from gptoss_export.artifact.calls import Role
from gptoss_export.errors import OutOfPagesError, RunError, UsageError

PAGE_BYTES = 2 * 2 * 2 * 64 * 32 * 4  # keys and values, 2 tensors each, 2 heads, 64 positions of 32 float32


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


@pytest.mark.parametrize("length", [1, 63, 64, 150, 249])
def test_a_truncated_sequence_goes_on_as_a_new_one(runner: Runner, sequence: list[int], length: int) -> None:
    """Sliding layers have given most pages back by then, and nobody has taken them."""
    runner.prefill(sequence[:length])
    expected = runner.decode([sequence[length], None, None])[0].clone()
    runner.prefill(sequence[300:550], slot=1)
    runner.reset()
    runner.prefill(sequence[:250])
    runner.truncate(length)
    found = runner.decode([sequence[length], None, None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_truncate_says_what_is_lost(artifact: Path, sequence: list[int]) -> None:
    """The pages that slot 0 gave back are taken by slot 1."""
    small = load(artifact, kv_memory=12 * PAGE_BYTES)
    small.prefill(sequence[:250])
    small.prefill(sequence[:120], slot=1)
    with pytest.raises(RunError, match="truncate to 30: the pages of sliding layers before that were given to other"):
        small.truncate(30)
    assert small.length() == 250
    expected = small.decode([sequence[250], None, None])[0].clone()
    small.truncate(250)  # the window is there
    torch.testing.assert_close(small.decode([sequence[250], None, None])[0], expected, rtol=1e-4, atol=1e-4)


def test_a_fork_shares_what_is_common(runner: Runner, sequence: list[int]) -> None:
    """Both go on with other tokens, from the middle of a page, past a window and a page."""
    start, ends = sequence[:150], (sequence[200:230], sequence[300:330])
    expected = []
    for end in ends:
        runner.reset()
        runner.prefill(start)
        expected.append(runner.prefill(end).clone())
    runner.reset()
    runner.prefill(start)
    held = _held(runner)
    runner.fork(0, 2)
    assert _held(runner) == held and runner.length(2) == 150
    for slot, end, wanted in zip((2, 0), ends, expected, strict=True):
        assert torch.equal(runner.prefill(end, slot=slot), wanted)
    assert _held(runner) < 2 * held
    runner.reset()
    assert _held(runner) == 0


def _held(runner: Runner) -> int:
    assert runner.slots.pages is not None
    return runner.slots.pages.pool.held


@pytest.mark.parametrize(("source", "target"), [(0, 0), (0, 3), (-1, 0)])
def test_a_fork_that_makes_no_sense(runner: Runner, sequence: list[int], source: int, target: int) -> None:
    runner.prefill(sequence[:5])
    with pytest.raises(RunError, match=r"found slot 0 twice|expected 0 to 2"):
        runner.fork(source, target)
    assert runner.length() == 5


def test_a_full_cache_refuses_before_anything_changes(artifact: Path, sequence: list[int]) -> None:
    small = load(artifact, kv_memory=12 * PAGE_BYTES)
    small.prefill(sequence[:250])
    with pytest.raises(OutOfPagesError, match=r"slot 1: 0 tokens and 300 more need \d more pages than"):
        small.prefill(sequence[:300], slot=1)
    assert small.length(1) == 0 and len(small.prefill(sequence[:100], slot=1)) > 0


def test_a_batch_that_does_not_fit_at_once(artifact: Path, runner: Runner, sequence: list[int]) -> None:
    """Prompts wait for each other, and sequences that outgrow the cache are set back."""
    small = load(artifact, kv_memory=12 * PAGE_BYTES)
    prompts = [sequence[index : index + 120] for index in range(3)]
    results = small.generate_batch(prompts, 100, stop_tokens=())
    for prompt, result in zip(prompts, results, strict=True):
        assert result.tokens == runner.generate(prompt, 100, stop_tokens=()).tokens


@pytest.mark.parametrize("memory", [0, 2 * 65536])
def test_memory_for_no_sequence_at_all(artifact: Path, memory: int) -> None:
    with pytest.raises(UsageError, match=f"KV memory: found {memory:,} bytes, expected at least 196,608"):
        load(artifact, kv_memory=memory)


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


def test_a_sliding_layer_and_a_full_one_share_the_pages_of_the_pool(loaded: Runner) -> None:
    inputs = loaded.executor.programs["decode_3"].inputs  # type: ignore[attr-defined]
    addresses = {name: tensor.data_ptr() for name, tensor in inputs.items() if "_cache" in name}
    assert addresses["k_cache.0"] == addresses["k_cache.1"] != addresses["k_cache.2"] == addresses["k_cache.3"]
    assert len(set(addresses.values())) == 4
    # By default every slot has the 69 pages of 4,400 positions for full layers, and for sliding layers those that a
    # chunk of 64 and a window of 32 can touch.
    pages = 1 + 3 * (69 + 3)
    assert loaded.executor.kv_cache_bytes == pages * PAGE_BYTES
    assert {tuple(tensor.shape) for name, tensor in inputs.items() if "_cache" in name} == {(pages, 2, 64, 32)}


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

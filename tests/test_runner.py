"""The runner against transformers on the same checkpoint: lengths, batches, cuts, sampling, errors."""

import pytest
import torch

from gptoss_export.errors import RunError
from gptoss_export.verify.metric import TOLERANCES, error
from gptoss_export.runtime import Runner, Sampling

FLOAT32 = TOLERANCES[torch.float32]
WINDOW, CHUNK = 32, 64
RING = WINDOW + CHUNK


@pytest.fixture(scope="module")
def expected(transformer, sequence) -> torch.Tensor:
    """transformers' logits after every token of the sequence."""
    with torch.no_grad():
        return transformer(torch.tensor([sequence])).logits[0]


@pytest.mark.parametrize(
    "length", [1, 2, 15, 16, 17, WINDOW - 1, WINDOW, WINDOW + 1, CHUNK, CHUNK + 1, RING, RING + 1, 2 * RING, 300]
)
def test_prefill_then_decode(runner, sequence, expected, length):
    assert error(runner.prefill(sequence[:length]), expected[length - 1]).within(FLOAT32)
    for row in range(length, length + 3):
        logits = runner.decode([sequence[row], None, None])
        assert error(logits[0], expected[row]).within(FLOAT32)
    assert runner.length() == length + 3


def test_prefill_in_pieces_of_any_size(runner, sequence, expected):
    done = 0
    for size in (1, 5, 64, 16, 130, 7, 2):
        logits = runner.prefill(sequence[done : done + size])
        done += size
        assert error(logits, expected[done - 1]).within(FLOAT32)


def test_logits_after_every_prompt_token(runner, sequence, expected):
    assert error(torch.cat(list(runner.prefill_logits(sequence[:333]))), expected[:333]).within(FLOAT32)


def test_a_position_past_yarns_original_context(runner, transformer):
    tokens = torch.randint(0, 512, (4110,), generator=torch.Generator().manual_seed(5)).tolist()
    with torch.no_grad():
        hidden = transformer.model(torch.tensor([tokens])).last_hidden_state[0, 4090:]
        expected = transformer.lm_head(hidden)
    logits = [runner.prefill(tokens[:4091])]
    logits += [runner.decode([token, None, None])[0] for token in tokens[4091:]]
    assert error(torch.stack(logits), expected).within(FLOAT32)


def test_greedy_equals_transformers_for_200_tokens(runner, transformer, sequence):
    with torch.no_grad():
        expected = transformer.generate(
            torch.tensor([sequence[:50]]), max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    result = runner.generate(sequence[:50], 200, stop_tokens=())
    assert result.tokens == expected[0, 50:].tolist()
    assert result.finish == "length" and len(result.logprobs) == 200


def test_unequal_prompts_in_one_batch(runner, sequence):
    prompts = [sequence[:1], sequence[100:310], sequence[40:77]]
    together = runner.generate_batch(prompts, 40, stop_tokens=())
    for prompt, result in zip(prompts, together, strict=True):
        alone = runner.generate(prompt, 40, stop_tokens=())
        assert result.tokens == alone.tokens
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_a_sequence_stops_alone(runner, sequence):
    prompts = [sequence[:9], sequence[20:60], sequence[5:70]]
    free = runner.generate_batch(prompts, 30, stop_tokens=())
    stop = free[1].tokens[4]
    stopped = runner.generate_batch(prompts, 30, stop_tokens=[stop])
    for before, after in zip(free, stopped, strict=True):
        end = before.tokens.index(stop) + 1 if stop in before.tokens else 30
        assert after.tokens == before.tokens[:end]
        assert after.finish == ("stop" if stop in before.tokens else "length")


def test_idle_slots_keep_their_sequence(runner, sequence, expected):
    for slot in range(3):
        runner.prefill(sequence[: 100 + slot], slot)
    for row in range(101, 111):
        runner.decode([None, sequence[row], None])
    assert [runner.length(slot) for slot in range(3)] == [100, 111, 102]
    assert error(runner.decode([sequence[100], None, None])[0], expected[100]).within(FLOAT32)
    assert error(runner.prefill(sequence[102:140], 2), expected[139]).within(FLOAT32)


def test_a_step_of_idle_slots_alone_changes_nothing(runner, sequence):
    runner.generate(sequence[:19], 1, stop_tokens=())
    untouched = runner.decode([7, None, None])[0].clone()
    runner.generate(sequence[:19], 1, stop_tokens=())
    runner.decode([None, None, None])
    assert torch.equal(runner.decode([7, None, None])[0], untouched)


def test_a_step_that_ran_ahead_is_taken_back(runner, sequence, expected):
    """What a stream on a GPU leaves behind when the next call comes before its next token was taken."""
    runner.prefill(sequence[:20])
    runner._slots[0].extend(1)
    runner._ahead = {0}
    assert runner.length() == 20
    assert error(runner.decode([sequence[20], None, None])[0], expected[20]).within(FLOAT32)
    assert runner.length() == 21


def test_generation_stops_at_the_context(runner):
    limit = runner.manifest.max_context
    result = runner.generate([1] * (limit - 3), 50, stop_tokens=())
    assert result.finish == "context" and len(result.tokens) == 4
    assert runner.length() == limit


def test_truncate_and_go_on(runner, sequence, expected):
    runner.prefill(sequence[:250])
    for _ in range(2):
        runner.truncate(250 - CHUNK)
        assert error(runner.prefill(sequence[186:250]), expected[249]).within(FLOAT32)
    with pytest.raises(RunError, match="hold positions 154 to 249 only"):
        runner.truncate(150)
    runner.truncate(0)
    assert error(runner.prefill(sequence[:20]), expected[19]).within(FLOAT32)


def test_truncate_within_the_ring_reaches_anywhere(runner, sequence, expected):
    runner.prefill(sequence[:RING])
    runner.truncate(3)
    assert error(runner.prefill(sequence[3:40]), expected[39]).within(FLOAT32)


def test_truncate_remembers_what_was_overwritten(runner, sequence):
    """Positions that a longer past overwrote stay lost after a cut, until they are written again."""
    runner.prefill(sequence[:200])
    runner.truncate(150)
    runner.prefill(sequence[150:152])
    with pytest.raises(RunError, match="hold positions 104 to 199"):
        runner.truncate(120)


def test_logprobs_and_logits(runner, sequence, expected):
    result = runner.generate(sequence[:60], 5, stop_tokens=(), keep_logits=True)
    assert error(result.logits[0], expected[59]).within(FLOAT32)
    for token, value, logits in zip(result.tokens, result.logprobs, result.logits, strict=True):
        assert value == pytest.approx(logits.log_softmax(-1)[token].item(), abs=1e-5)


def test_score(runner, sequence, expected):
    got = runner.score(sequence[:150])
    want = expected[:149].log_softmax(-1)[torch.arange(149), torch.tensor(sequence[1:150])]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_sampling(runner, sequence):
    def tokens(**options):
        return runner.generate(sequence[:30], 12, Sampling(**options), stop_tokens=()).tokens

    assert tokens(temperature=0.9, top_k=1) == tokens()
    assert tokens(temperature=0.9, seed=4) == tokens(temperature=0.9, seed=4)
    assert tokens(temperature=0.9, seed=4) != tokens(temperature=0.9, seed=5)
    batch = runner.generate_batch(
        [sequence[:30], sequence[:30]], 12, [Sampling(), Sampling(0.9, seed=4)], stop_tokens=()
    )
    assert batch[0].tokens == tokens() and batch[1].tokens == tokens(temperature=0.9, seed=4)


def test_stream_is_generate(runner, sequence):
    streamed = [(token.id, token.logprob) for token in runner.stream(sequence[:10], 20, stop_tokens=())]
    whole = runner.generate(sequence[:10], 20, stop_tokens=())
    assert streamed == list(zip(whole.tokens, whole.logprobs, strict=True))


def test_a_stream_that_another_call_overtook_is_refused(runner, sequence):
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


def test_a_refused_score_leaves_the_slot(runner, sequence):
    runner.prefill(sequence[:7])
    with pytest.raises(RunError):
        runner.score([1] * 5000)
    assert runner.length() == 7


def test_truncate_to_nothing_forgets_what_was_overwritten(runner, sequence):
    runner.prefill(sequence[:250])
    runner.truncate(0)
    runner.prefill(sequence[:90])
    runner.truncate(80)
    assert runner.length() == 80


def test_stop_tokens_default_to_the_checkpoints(runner, sequence):
    assert runner.manifest.stop_tokens == (511,)
    free = runner.generate(sequence[:10], 100, stop_tokens=()).tokens
    end = free.index(511) + 1 if 511 in free else 100
    assert runner.generate(sequence[:10], 100).tokens == free[:end]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.generate([]), "no tokens"),
        (lambda r: r.generate([1] * 4401), "4401 more exceed the context of 4400"),
        (lambda r: r.generate([1.5]), "expected whole numbers"),
        (lambda r: r.generate([1, 512]), "token 512: expected ids of 0 to 511"),
        (lambda r: r.generate([-1]), "token -1"),
        (lambda r: r.generate([1], 0), "max_new_tokens"),
        (lambda r: r.generate([1], sampling=Sampling(temperature=-1)), "temperature"),
        (lambda r: r.generate_batch([[1]] * 4), "4 prompts"),
        (lambda r: r.generate_batch([[1]] * 2, sampling=[Sampling()]), "1 options for 2 prompts"),
        (lambda r: r.stream([1] * 5000), "5000 more exceed"),
        (lambda r: r.prefill_logits([1] * 5000), "5000 more exceed"),
        (lambda r: r.score([1] * 5000), "5000 more exceed"),
        (lambda r: r.prefill([]), "no tokens"),
        (lambda r: r.prefill([1], slot=3), "slot 3"),
        (lambda r: r.prefill([1] * 4401), "exceed the context of 4400"),
        (lambda r: r.decode([1]), "found 1 tokens"),
        (lambda r: r.decode([None, 600, None]), "token 600"),
        (lambda r: r.truncate(1), "the sequence has 0 tokens"),
        (lambda r: r.score([1]), "found 1 tokens"),
        (lambda r: r.reset(9), "slot 9"),
    ],
)
def test_refused(runner, call, message):
    with pytest.raises(RunError, match=message):
        call(runner)


def test_weights_are_mapped_not_copied_and_shared(loaded):
    decode = dict(zip([i.name for i in loaded.manifest.programs["decode"].inputs], loaded._buffers["decode"], strict=True))
    for name, spec in loaded.manifest.programs.items():
        for item, tensor in zip(spec.inputs, loaded._buffers[name], strict=True):
            if item.role != "data" and item.name in decode:
                assert tensor.data_ptr() == decode[item.name].data_ptr()


def test_sliding_layers_hold_window_and_chunk_only(loaded):
    rows = {item.name: item.shape[2] for item in loaded.manifest.programs["decode"].inputs if item.role == "cache"}
    assert rows["k_cache.0"] == rows["v_cache.2"] == RING + 1
    assert rows["k_cache.1"] == rows["v_cache.3"] == 4400 + 1


def test_loads_again_beside_another(artifact, loaded, sequence):
    second = Runner.load(artifact)
    loaded.reset()
    loaded.prefill(sequence[:5])
    assert second.length() == 0
    assert torch.equal(second.prefill(sequence[:40]), second.prefill(sequence[:40], slot=1))

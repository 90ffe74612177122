"""Sampling against transformers' logits processors, and the noise against its distribution."""

import pytest
import torch

from gptoss_export.errors import RunError
from gptoss_export.runtime.sampling_params import Sampling
from gptoss_export.runtime.sampler_torch import SamplingBuffers, Scores, gumbel, logprob, sample


def draw(logits, positions, *options):
    buffers = SamplingBuffers(len(options), torch.device("cpu"))
    buffers.set(options)
    return sample(logits, positions, buffers)


@pytest.mark.parametrize("options", [Sampling(0.7, 5), Sampling(1.3, 0, 0.6), Sampling(1.0, 8, 0.7), Sampling(2.0, 1)])
def test_only_what_transformers_would_keep_is_drawn(options):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
    kept = TemperatureLogitsWarper(options.temperature)(None, logits)
    # Top-p is taken of the whole distribution here, so each processor sees the same logits.
    allowed = torch.isfinite(TopPLogitsWarper(options.top_p)(None, kept))
    if options.top_k:
        allowed &= torch.isfinite(TopKLogitsWarper(options.top_k)(None, kept))
    count = 3000
    tokens = draw(logits.expand(count, -1), torch.arange(count), *[options] * count)
    found = torch.zeros(40, dtype=torch.bool)
    found[tokens] = True
    assert torch.equal(found & allowed[0], found)
    probability = torch.where(allowed, kept, float("-inf")).softmax(-1)[0]
    frequency = torch.bincount(tokens, minlength=40) / count
    assert (frequency - probability).abs().max() < 5 * (0.25 / count) ** 0.5


def test_zero_temperature_is_greedy_beside_random_rows():
    logits = torch.randn(2, 100)
    tokens = draw(logits, torch.tensor([5, 5]), Sampling(), Sampling(1.0))
    assert tokens[0] == logits[0].argmax()


def test_a_draw_depends_on_seed_and_position_only():
    logits = torch.randn(1, 200).expand(3, -1)
    options = Sampling(1.0, seed=11)
    alone = draw(logits[:1], torch.tensor([9]), options)
    among = draw(logits, torch.tensor([4, 9, 9]), options, options, Sampling(1.0, seed=12))
    assert alone[0] == among[1]
    draws = draw(logits[:1].expand(64, -1), torch.arange(64), *[options] * 64)
    assert len(set(draws.tolist())) > 16


def test_noise_is_gumbel():
    noise = gumbel(torch.tensor(3), torch.tensor(4), torch.arange(200_000))
    assert torch.isfinite(noise).all()
    # The distribution function exp(-exp(-x)) of a Gumbel variable is uniform.
    uniform = torch.exp(-torch.exp(-noise)).sort().values
    assert (uniform - torch.linspace(0, 1, len(uniform))).abs().max() < 0.005
    other = gumbel(torch.tensor(3), torch.tensor(5), torch.arange(200_000))
    assert abs(torch.corrcoef(torch.stack((noise, other)))[0, 1]) < 0.01


def test_logprob():
    logits, tokens = torch.randn(4, 50) * 10, torch.tensor([0, 7, 49, 3])
    expected = logits.log_softmax(-1)[torch.arange(4), tokens]
    scores = Scores(logits, *[torch.empty(4)] * 2, logits.logsumexp(-1))
    torch.testing.assert_close(logprob(scores, tokens), expected)


def test_options_out_of_range_are_named_together():
    with pytest.raises(RunError) as caught:
        Sampling(-1.0, -2, 0.0, 2**63).check()
    for name in ("temperature", "top_k", "top_p", "seed"):
        assert name in str(caught.value)
    with pytest.raises(RunError, match="temperature"):
        Sampling(float("nan")).check()

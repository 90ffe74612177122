"""Each sampler against a definition of our own, against transformers' logits processors, and the noise itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sampling_definition import chosen_token, kept_tokens, logprob, noise, probabilities

from gptoss_export import SamplingParams
from gptoss_export.errors import RunError
from gptoss_export.model import choice
from gptoss_export.model.sampling_state import Choice
from gptoss_export.runtime import sampler_numpy
from gptoss_export.runtime.choosing import Chooser
from gptoss_export.runtime.executor import Sampling
from gptoss_export.runtime.sampling_buffers import SamplingBuffers
from gptoss_export.runtime.with_torch.choices import IN_TORCH, output_of
from gptoss_export.runtime.with_torch.tensors import TorchTensors

PARAMS = [
    SamplingParams(),
    SamplingParams(1.0, seed=3),
    SamplingParams(0.7, 5, seed=-1),
    SamplingParams(1.3, 0, 0.6, seed=2**63 - 1),
    SamplingParams(1.0, 8, 0.7, seed=-(2**63)),
    SamplingParams(2.0, 1),
    SamplingParams(0.2, 40, 0.99, seed=12345678901234),
    SamplingParams(1.2, min_p=0.08, seed=9),
    SamplingParams(0.9, 12, 0.9, min_p=0.2),
]


def draw(
    sampler: str, logits: torch.Tensor, positions: Sequence[int], params: Sequence[SamplingParams]
) -> tuple[list[int], list[float]]:
    """A token and its log probability for each row."""
    if sampler == "numpy":
        tokens, logprobs = sampler_numpy.choose(logits.numpy(), positions, dict(enumerate(params)))
        return tokens.tolist(), logprobs.tolist()
    buffers = SamplingBuffers(len(params), logits.size(1), TorchTensors(torch.device("cpu")))
    buffers.set(dict(enumerate(map(Sampling, params))))
    output = output_of(logits)
    choice = Choice.LIMITED if any(param.limits for param in params) else Choice.DRAWN
    chooser = Chooser(buffers, IN_TORCH)
    drawn, drawn_logprobs, *_ = chooser.choose(output, torch.tensor(positions), torch.arange(len(params)), choice)
    return drawn.tolist(), drawn_logprobs.tolist()


def random_logits(rows: int, vocabulary: int) -> torch.Tensor:
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(1))


both_samplers = pytest.mark.parametrize("sampler", ["torch", "numpy"])


@both_samplers
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_tokens_are_those_of_the_definition(sampler: str, params: SamplingParams) -> None:
    logits = random_logits(200, 50)
    positions = [0, 1, 2, 4095, 131071, *range(500, 695)]
    tokens, logprobs = draw(sampler, logits, positions, [params] * 200)
    rows = logits.tolist()
    expected = [chosen_token(row, position, params) for row, position in zip(rows, positions, strict=True)]
    assert tokens == expected
    wanted = [logprob(row, token) for row, token in zip(rows, expected, strict=True)]
    assert logprobs == pytest.approx(wanted, abs=1e-5)


@both_samplers
@pytest.mark.parametrize("params", [SamplingParams(1.0, 3, seed=5), SamplingParams(1.0, 0, 0.37, seed=6)], ids=str)
def test_of_equal_logits_the_lower_tokens_are_kept(sampler: str, params: SamplingParams) -> None:
    logits = random_logits(100, 50).round()  # about ten different values
    tokens, _ = draw(sampler, logits, range(100), [params] * 100)
    assert tokens == [chosen_token(row, position, params) for position, row in enumerate(logits.tolist())]


@both_samplers
def test_greedy_without_reading_the_logits(sampler: str) -> None:
    logits = random_logits(20, 50)
    logits[3] = 1.0  # of equal logits the lowest id wins
    tokens, logprobs = draw(sampler, logits, [0] * 20, [SamplingParams()] * 20)
    assert tokens == [kept_tokens(row, SamplingParams())[0] for row in logits.tolist()] and tokens[3] == 0
    chooser = Chooser(SamplingBuffers(20, 50, TorchTensors(torch.device("cpu"))), IN_TORCH)
    output = output_of(logits)
    found, found_logprobs, *_ = chooser.choose(output, torch.zeros(20), torch.arange(20), Choice.MOST_LIKELY)
    assert found.tolist() == tokens and found_logprobs.tolist() == pytest.approx(logprobs, abs=1e-5)


@both_samplers
@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, {3, 1, 0, 2}),
        (0, 0.3, {3}),  # the most likely token alone has more than that
        (0, 0.5, {3, 1}),  # token 1 crosses 0.5 and is kept
        (0, 0.69, {3, 1}),
        (0, 0.75, {3, 1, 0}),
        (0, 0.95, {3, 1, 0, 2}),
        (2, 1.0, {3, 1}),
        (2, 0.3, {3}),
        (1, 0.95, {3}),
        (3, 0.75, {3, 1, 0}),  # top_p counts the probability among all tokens: among the three, two have 0.78
        (9, 1.0, {3, 1, 0, 2}),
    ],
)
def test_kept_tokens(sampler: str, top_k: int, top_p: float, kept: set[int]) -> None:
    """Tokens 0 to 3 have the probabilities 0.2, 0.3, 0.1 and 0.4. Those that are kept are all drawn in 300 draws."""
    logits = torch.tensor([0.2, 0.3, 0.1, 0.4]).log()
    params = SamplingParams(1.0, top_k, top_p)
    assert set(kept_tokens(logits.tolist(), params)) == kept
    tokens, _ = draw(sampler, logits.expand(300, -1), range(300), [params] * 300)
    assert set(tokens) == kept


@both_samplers
@pytest.mark.parametrize(
    ("min_p", "kept"),
    [(0.0, {3, 1, 0, 2}), (0.24, {3, 1, 0, 2}), (0.26, {3, 1, 0}), (0.74, {3, 1}), (0.76, {3}), (1.0, {3})],
)
def test_min_p(sampler: str, min_p: float, kept: set[int]) -> None:
    """A share of the largest probability, 0.4: the others have 0.75, 0.5 and 0.25 of it."""
    logits = torch.tensor([0.2, 0.3, 0.1, 0.4]).log()
    params = SamplingParams(1.0, min_p=min_p)
    assert set(kept_tokens(logits.tolist(), params)) == kept
    tokens, _ = draw(sampler, logits.expand(300, -1), range(300), [params] * 300)
    assert set(tokens) == kept


@both_samplers
@pytest.mark.parametrize("params", [params for params in PARAMS if params.temperature], ids=str)
def test_frequencies_are_those_of_transformers(sampler: str, params: SamplingParams) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = random_logits(1, 40)
    scaled = TemperatureLogitsWarper(params.temperature)(None, logits)
    # Top-p is taken of the whole distribution here, so each processor sees the same logits.
    allowed = torch.isfinite(TopPLogitsWarper(params.top_p)(None, scaled)) if params.top_p < 1 else scaled == scaled
    if params.top_k:
        allowed &= torch.isfinite(TopKLogitsWarper(params.top_k)(None, scaled))
    if params.min_p:
        allowed &= torch.isfinite(MinPLogitsWarper(params.min_p)(None, scaled))
    count = 4000
    tokens, _ = draw(sampler, logits.expand(count, -1), range(count), [params] * count)
    probability = torch.where(allowed, scaled, float("-inf")).softmax(-1)[0].double()
    found = torch.bincount(torch.tensor(tokens), minlength=40).double() / count
    assert not found[~allowed[0]].any()
    deviation = (probability * (1 - probability) / count).sqrt()
    assert bool(((found - probability).abs() <= 5 * deviation + 1e-12 + (probability < 5e-3) * 3e-3).all())
    assert bool((found[probability > 5e-3] > 0).all())


@both_samplers
def test_rows_do_not_disturb_each_other(sampler: str) -> None:
    logits = random_logits(2, 100)
    draws = [
        draw(sampler, logits, [position] * 2, [SamplingParams(), SamplingParams(1.0)])[0] for position in range(32)
    ]
    assert {greedy for greedy, _ in draws} == {int(logits[0].argmax())}
    assert len({random for _, random in draws}) > 8


@both_samplers
def test_a_draw_depends_on_seed_and_position_only(sampler: str) -> None:
    logits = random_logits(1, 200)
    params, other = SamplingParams(1.0, seed=11), SamplingParams(1.0, seed=12)
    (alone,), _ = draw(sampler, logits, [9], [params])
    among, _ = draw(sampler, logits.expand(3, -1), [4, 9, 9], [params, params, other])
    assert alone == among[1]
    draws, _ = draw(sampler, logits.expand(64, -1), range(64), [params] * 64)
    others, _ = draw(sampler, logits.expand(64, -1), range(64), [other] * 64)
    assert len(set(draws)) > 16 and draws != others


def test_noise_is_gumbel() -> None:
    tokens = torch.arange(200_000)
    found = choice.gumbel(torch.tensor(3), torch.tensor(4), tokens)
    assert torch.isfinite(found).all()
    # The distribution function exp(-exp(-x)) of a Gumbel variable is uniform.
    uniform = torch.exp(-torch.exp(-found)).sort().values
    assert (uniform - torch.linspace(0, 1, len(uniform))).abs().max() < 0.005
    other = choice.gumbel(torch.tensor(3), torch.tensor(5), tokens)
    assert abs(torch.corrcoef(torch.stack((found, other)))[0, 1]) < 0.01


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("position", [0, 131071])
def test_noise_is_the_hash_of_the_definition(seed: int, position: int) -> None:
    tokens = [0, 1, 511, 201087]
    expected = [noise(seed, position, token) for token in tokens]
    in_torch = choice.gumbel(torch.tensor(seed), torch.tensor(position), torch.tensor(tokens))
    in_numpy = sampler_numpy.gumbel(seed, position, np.array(tokens))
    assert in_torch.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert in_numpy.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_logprob() -> None:
    logits, tokens = 5 * random_logits(4, 50), torch.tensor([0, 7, 49, 3])
    expected = [logprob(row, token) for row, token in zip(logits.tolist(), tokens.tolist(), strict=True)]
    torch.testing.assert_close(torch.tensor(expected), logits.log_softmax(-1)[torch.arange(4), tokens])
    in_torch = choice.logprob(logits, logits.logsumexp(-1), tokens)
    in_numpy = sampler_numpy.logprob(logits.numpy(), tokens.numpy())
    assert in_torch.tolist() == pytest.approx(expected, rel=1e-5) == in_numpy.tolist()


def test_step_output() -> None:
    logits = random_logits(5, 50)
    output = output_of(logits.to(torch.bfloat16))
    assert torch.equal(output.logits, logits.bfloat16().float()) and torch.equal(output.top, output.logits.argmax(-1))
    torch.testing.assert_close(output.log_total, output.logits.logsumexp(-1))
    torch.testing.assert_close(output.top_logprob, output.logits.log_softmax(-1).amax(-1))


@pytest.mark.parametrize("temperature", [1e-46, 1e-45, 1e-40, 2.0**-126, 1e-30, 1e-10])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature: float, scale: float) -> None:
    """Nothing overflows: quotients beyond float32 are of tokens without any probability."""
    logits = scale * torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(temperature, seed=4)
    expected = logits.argmax(dim=-1).tolist()
    assert draw("torch", logits, range(3), [params] * 3)[0] == expected
    with np.errstate(all="raise", under="ignore"):
        found, logprobs = sampler_numpy.choose(logits.numpy(), [0, 1, 2], dict.fromkeys(range(3), params))
    assert found.tolist() == expected and np.isfinite(logprobs).all()


def test_the_definition_itself() -> None:
    """By hand, where it is easy."""
    assert probabilities([0.0, math.log(3.0)]) == pytest.approx([0.25, 0.75])
    assert kept_tokens([1.0, 2.0, 2.0], SamplingParams(1.0, 2)) == [1, 2]
    assert noise(0, 0, 0) == pytest.approx(-math.log(-math.log(0.5 / 2**23)))


def test_parameters_out_of_range_are_named_together() -> None:
    with pytest.raises(RunError) as caught:
        SamplingParams(-1.0, -2, 0.0, 2**63, 2.0)
    for name in ("temperature", "top_k", "top_p", "seed", "min_p"):
        assert name in str(caught.value)
    for wrong in (
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 1.01},
        {"seed": -(2**63) - 1},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ):
        with pytest.raises(RunError, match=next(iter(wrong))):
            SamplingParams(**wrong)

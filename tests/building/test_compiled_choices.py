"""Compiled choices give the tokens of the functions that they are compiled from, and of the sampler in numpy, for any
number of rows."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from aoti_packages import compile_package, device_archs, libraries_of

from artifacts import TWO_LAYERS
from gptoss_export import SamplingParams
from gptoss_export.artifact.programs import CHOICES, Sizes
from gptoss_export.compat.inductor_cache import own_cache
from gptoss_export.compat.packaged_program import PackagedProgram
from gptoss_export.model.sampling_state import DRAWING, Choice, adjusting, mask_words
from gptoss_export.runtime import sampler_numpy
from gptoss_export.runtime.adjust_numpy import Adjustment
from gptoss_export.runtime.choosing import ChoiceProgram, Chooser, Chosen, StepOutput
from gptoss_export.runtime.executor import Sampling
from gptoss_export.runtime.sampling_buffers import SamplingBuffers
from gptoss_export.runtime.with_torch.choices import IN_TORCH, output_of
from gptoss_export.runtime.with_torch.tensors import TorchTensors
from gptoss_export.targets.aoti import cross_compile
from gptoss_export.targets.aoti.compile import COMPILER

CPU = torch.device("cpu")
VOCABULARY, SLOTS = 1543, 5  # several parts of running sums, and a last word of a mask that is not full
CONFIG = dataclasses.replace(TWO_LAYERS, vocab_size=VOCABULARY)
PROGRAMS = {kind.choice: kind for kind in CHOICES}
PARAMS = (
    SamplingParams(),
    SamplingParams(1.0, seed=2**63 - 1),
    SamplingParams(1.3, 0, 0.6, seed=-(2**63)),
    SamplingParams(0.7, 40, seed=-1),
    SamplingParams(0.9, 300, 0.95, min_p=0.02, seed=12345678901234),
)
ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"))
ROWS = [[3], [0], [1, 4], [4, 2, 1], [0, 1, 2, 3, 4], [2] * 9]  # the slot of each


class Choosing(NamedTuple):
    """What computes choices on a device. Rows and results are on the CPU."""

    device: torch.device
    programs: Mapping[Choice, ChoiceProgram]

    def buffers(self, given: Sequence[Sampling]) -> SamplingBuffers:
        found = SamplingBuffers(SLOTS, VOCABULARY, TorchTensors(self.device))
        found.set(dict(enumerate(given)))
        return found

    def choose(
        self, buffers: SamplingBuffers, output: StepOutput, last: list[int], slots: list[int], choice: Choice
    ) -> Chosen:
        """last: the positions of the tokens before."""
        positions, of_rows = (torch.tensor(numbers, device=self.device) for numbers in (last, slots))
        moved = StepOutput(*(values.to(self.device) for values in output))
        found = Chooser(buffers, self.programs).choose(moved, positions, of_rows, choice)
        return Chosen(*(values if values is None else values.cpu() for values in found))


EAGER = Choosing(CPU, IN_TORCH)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Choosing:
    """The programs of all choices, compiled for this machine."""
    folder, arch = tmp_path_factory.mktemp("choices") / "package", COMPILER.current_arch(request.param)
    assert arch is not None
    sizes = Sizes(widths=(1, SLOTS), max_context=64, prefill_chunks=(16,))
    with own_cache(f"{arch}-test-choices"):  # other test processes compile the same programs
        package = compile_package(folder, request.param, arch, torch.bfloat16, tuple(PROGRAMS.values()), CONFIG, sizes)
    device = torch.device(request.param, 0 if request.param == "cuda" else None)
    code = hashlib.sha256(package.read_bytes()).hexdigest()
    programs = {choice: PackagedProgram(package, code, kind.name, device).run for choice, kind in PROGRAMS.items()}
    return Choosing(device, programs)


def random_output(rows: int, seed: int, ties: bool = False) -> StepOutput:
    logits = 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return output_of(logits.round() if ties else logits)


def random_positions(rows: int, seed: int) -> list[int]:
    return torch.randint(0, 131072, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("slots", ROWS, ids=str)
def test_drawn_tokens(compiled: Choosing, slots: list[int], ties: bool) -> None:
    buffers, eager_buffers = (choosing.buffers(list(map(Sampling, PARAMS))) for choosing in (compiled, EAGER))
    for seed in range(8):
        rows = random_output(len(slots), seed, ties), random_positions(len(slots), seed), slots, Choice.LIMITED
        output, positions, *_ = rows
        found, eager = compiled.choose(buffers, *rows), EAGER.choose(eager_buffers, *rows)
        params = {row: PARAMS[slot] for row, slot in enumerate(slots)}
        tokens, logprobs = sampler_numpy.choose(output.logits.numpy(), positions, params)
        assert found.tokens.tolist() == tokens.tolist() == eager.tokens.tolist()
        assert found.logprobs.tolist() == pytest.approx(logprobs.tolist(), abs=1e-5)


@pytest.mark.parametrize("slots", ROWS, ids=str)
def test_tokens_drawn_without_limits_need_no_order(compiled: Choosing, slots: list[int]) -> None:
    """A sequence draws the same beside one with limits, whose step is another program."""
    params = [dataclasses.replace(param, top_k=0, top_p=1.0) for param in PARAMS]
    buffers = compiled.buffers(list(map(Sampling, params)))
    for seed in range(8):
        output, positions = random_output(len(slots), seed), random_positions(len(slots), seed)
        free, limited = (
            compiled.choose(buffers, output, positions, slots, choice) for choice in (Choice.DRAWN, Choice.LIMITED)
        )
        tokens, logprobs = sampler_numpy.choose(
            output.logits.numpy(), positions, {row: params[slot] for row, slot in enumerate(slots)}
        )
        assert free.logprobs.tolist() == pytest.approx(logprobs.tolist(), abs=1e-5)
        assert free.tokens.tolist() == limited.tokens.tolist() == tokens.tolist()


def test_noise_has_the_bits_of_the_hash(compiled: Choosing) -> None:
    """Of equal logits the token with the largest noise is drawn: a wrong bit of the hash draws another."""
    seeds = (0, 1, -1, 2**63 - 1, -(2**63))
    buffers = compiled.buffers([Sampling(SamplingParams(1.0, seed=seed)) for seed in seeds])
    output = output_of(torch.zeros(SLOTS, VOCABULARY))
    for position in (0, 1, 4095, 131071):
        found = compiled.choose(buffers, output, [position] * SLOTS, list(range(SLOTS)), Choice.DRAWN)
        noise = [sampler_numpy.gumbel(seed, position, np.arange(VOCABULARY)) for seed in seeds]
        assert found.tokens.tolist() == [int(values.argmax()) for values in noise]


@pytest.mark.parametrize("choice", [Choice.DRAWN, Choice.LIMITED])
def test_a_row_alone_has_the_bits_of_the_row_among_others(compiled: Choosing, choice: Choice) -> None:
    buffers = compiled.buffers(list(map(Sampling, PARAMS)))
    output, positions = random_output(SLOTS, 1), random_positions(SLOTS, 1)
    together = compiled.choose(buffers, output, positions, list(range(SLOTS)), choice)
    for row in range(SLOTS):
        of_row = StepOutput(*(values[row : row + 1] for values in output))
        alone = compiled.choose(buffers, of_row, [positions[row]], [row], choice)
        assert alone.tokens.equal(together.tokens[row : row + 1])
        assert alone.logprobs.equal(together.logprobs[row : row + 1])


def adjusted_samplings() -> list[Sampling]:
    changes = (
        {"repetition_penalty": 1.4},
        {"presence_penalty": 2.0, "frequency_penalty": 0.5},
        {"logit_bias": {7: 6.0, VOCABULARY - 1: 8.0, 0: -50.0}},
        {"min_new_tokens": 3, "logit_bias": {511: 40.0}},
        {"top_logprobs": 20},
    )
    prompts = [list(range(slot, 60, 7)) for slot in range(SLOTS)]
    return [
        Sampling(dataclasses.replace(params, **change), prompt, (5, 5, 9), frozenset({511, VOCABULARY - 2}))  # type: ignore[arg-type]
        for params, change, prompt in zip(PARAMS, changes, prompts, strict=True)
    ]


@pytest.mark.parametrize("slots", [slots for slots in ROWS if len(set(slots)) == len(slots)], ids=str)
def test_adjusted_tokens_step_by_step(compiled: Choosing, slots: list[int]) -> None:
    """Each step counts its own token, which the next step penalizes; from the third on only some tokens are allowed."""
    given = adjusted_samplings()
    buffers, eager_buffers = compiled.buffers(given), EAGER.buffers(given)
    on_host = [Adjustment(sampling, VOCABULARY) for sampling in given]
    for step in range(6):
        if step == 2:
            mask = bytes(itertools.islice(itertools.cycle(b"\x5a\xff\x01"), 4 * mask_words(VOCABULARY)))
            for allowing in (buffers, eager_buffers):
                allowing.allow(dict.fromkeys(slots, mask))
            for slot in slots:
                on_host[slot].allow(mask)
        output = random_output(len(slots), step, ties=step % 2 == 1)
        last = [len(given[slot].prompt) - 1 + step for slot in slots]
        found = compiled.choose(buffers, output, last, slots, Choice.ADJUSTED)
        eager = EAGER.choose(eager_buffers, output, last, slots, Choice.ADJUSTED)
        logits = output.logits.numpy()
        changed = np.stack([on_host[slot].apply(logits[row], last[row]) for row, slot in enumerate(slots)])
        tokens, _ = sampler_numpy.choose(changed, last, {row: given[slot].params for row, slot in enumerate(slots)})
        assert found.tokens.tolist() == tokens.tolist() == eager.tokens.tolist()
        assert found.logprobs.tolist() == pytest.approx(sampler_numpy.logprob(logits, tokens).tolist(), abs=1e-5)
        assert found.top is not None and found.top.shape == (len(slots), 20)
        torch.testing.assert_close(found.top_logprobs, eager.top_logprobs)
        torch.testing.assert_close(output.logits.gather(1, found.top) - output.log_total[:, None], found.top_logprobs)
        for slot, token in zip(slots, tokens.tolist(), strict=True):
            on_host[slot].count(token)
    state = zip(buffers.read_by(Choice.ADJUSTED), eager_buffers.read_by(Choice.ADJUSTED), strict=True)
    assert all(one.cpu().equal(other) for one, other in state)


def test_a_row_without_a_sequence_counts_nothing(compiled: Choosing) -> None:
    buffers = compiled.buffers(adjusted_samplings())
    names = [kind.name for kind in (*DRAWING, *adjusting(VOCABULARY))]
    counts = buffers.read_by(Choice.ADJUSTED)[names.index("counts")]
    before = counts.cpu().clone()
    found = compiled.choose(buffers, random_output(2, 1), [-1, 70], [1, 2], Choice.ADJUSTED)
    before[2, found.tokens[1]] += 1
    assert counts.cpu().equal(before)


@pytest.mark.skipif(bool(cross_compile.problems()), reason="; ".join(cross_compile.problems()))
def test_a_long_vocabulary_for_a_gpu(tmp_path: Path) -> None:
    """Blocks of a GPU would share the running sums of 201,088 numbers, and add in no fixed order. Inductor's code for
    that does not compile without the GPU."""
    config = dataclasses.replace(TWO_LAYERS, vocab_size=201088)
    package = compile_package(
        tmp_path / "package", "cuda", "sm_90", torch.bfloat16, CHOICES[:2], config, Sizes((8,), 64, (16,))
    )
    libraries = libraries_of(package, tmp_path)
    assert len(libraries) == 2
    for library in libraries.values():
        assert set(device_archs(library.read_bytes())) == {90}

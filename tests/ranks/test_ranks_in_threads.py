"""What ranks compute, without compiling: each rank is a thread with the weights that a rank loads, and the sums are
made between the threads. So more divisions are compared with transformers than can be compiled."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rank_artifacts import EVEN, ODD, expected_logits, transformer_of

from artifacts import SEED, compile_nothing, loaded_weights
from gptoss_export import BuildOptions, build
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.artifact.programs import kv_cache_names, kv_inputs, page_table_names
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.compiler.export import build_model
from gptoss_export.model import sums_of_ranks
from gptoss_export.model.config import ModelConfig
from gptoss_export.model.kv_cache import pages_for
from gptoss_export.model.ops import sum_ranks
from gptoss_export.model.ranks import rank_configs
from gptoss_export.ranks.exchange import NoExchange
from gptoss_export.verification.metric import TOLERANCES, deviation

LENGTH = 90  # past the window of 32
EIGHT = dataclasses.replace(EVEN, num_attention_heads=8, num_key_value_heads=8, intermediate_size=288, head_dim=16)


class Together:
    """Sums between threads, in the order of the ranks."""

    def __init__(self, ranks: int) -> None:
        self._barrier, self._parts = threading.Barrier(ranks, timeout=60), [torch.empty(0)] * ranks
        self.here = threading.local()

    def summed(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of what all threads give."""
        self._parts[self.here.rank] = x
        self._barrier.wait()
        found = self._parts[0].clone()
        for part in self._parts[1:]:
            found += part
        self._barrier.wait()
        return found

    def run(self, work: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """What a function of each rank gives, all at the same time."""

        def as_rank(rank: int) -> torch.Tensor:
            self.here.rank = rank
            return work(rank)

        with ThreadPoolExecutor(len(self._parts)) as threads:
            return list(threads.map(as_rank, range(len(self._parts))))


@torch.inference_mode()
def computed(config: ModelConfig, weights: dict[str, torch.Tensor], folder: Path, tokens: list[int]) -> torch.Tensor:
    """The logits of all tokens after each of `tokens`, with the most likely one in front of them."""
    model = build_model(config, torch.float32)
    state = {name: torch.nn.Parameter(value, requires_grad=False) for name, value in weights.items()}
    model.load_state_dict(state, strict=True, assign=True)
    sizes, count = load_manifest(folder).sizes, pages_for(LENGTH)
    caches = {item.name: torch.zeros(item.sizes(count + 1)) for item in kv_inputs(config, sizes, "float32")}
    table = torch.arange(1, count + 1, dtype=torch.int32)[None]
    hidden = model.backbone(
        torch.tensor([tokens]),
        torch.arange(len(tokens))[None],
        torch.zeros(1, dtype=torch.int64),
        dict.fromkeys(page_table_names(config), table),
        [(caches[k], caches[v]) for k, v in kv_cache_names(config)],
    )
    logits, top, top_logprob, _ = model.unembed(hidden)
    assert model.places is not None
    every = sums_of_ranks.all_logits(logits, model.places, config.ranks, config.vocab_size)
    return torch.cat((top[:, None].float(), top_logprob[:, None], every), dim=1)


@pytest.mark.parametrize(
    ("config", "ranks", "by_expert", "experts"),
    [
        (ODD, 2, False, "mxfp4"),
        (ODD, 2, True, "mxfp4"),
        (EVEN, 4, False, "mxfp4"),
        (EIGHT, 8, False, "mxfp4"),
        (EIGHT, 4, True, "mxfp4"),
        (ODD, 2, False, "nf4"),
        (ODD, 2, True, "nf4"),
        (EVEN, 4, False, "bf16"),
        (ODD, 2, True, "bf16"),
    ],
)
def test_ranks_against_transformers(
    config: ModelConfig, ranks: int, by_expert: bool, experts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_expert:
        config = dataclasses.replace(config, num_local_experts=7)  # the last rank has fewer
    checkpoint, artifact = tmp_path / "checkpoint", tmp_path / "artifact"
    write_synthetic(checkpoint, config, LAYOUTS["hf"], SEED, torch.device("cpu"))
    source = checkpoint
    if experts == "nf4":  # the same weights
        source = tmp_path / "nf4"
        write_synthetic(source, config, LAYOUTS["hf-separate-nf4"], SEED, torch.device("cpu"))
    compile_nothing(monkeypatch, programs=())
    options = BuildOptions(
        "aoti", "cpu", tensor_parallel=ranks, expert_parallel=by_expert, experts=experts, max_context=LENGTH
    )
    manifest = build(source, artifact, options)
    tokens = torch.randint(0, config.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    parts = rank_configs(manifest.model, manifest.sizes.sharing)
    together = Together(ranks)
    monkeypatch.setattr(sum_ranks, "_all_reduced", together.summed)
    found = together.run(
        lambda rank: computed(parts[rank], loaded_weights(manifest.of_rank(rank), artifact), artifact, tokens)
    )
    assert all(torch.equal(other, found[0]) for other in found)  # the same bits on every rank
    top, top_logprob, logits = found[0][:, 0], found[0][:, 1], found[0][:, 2:]
    expected = expected_logits(transformer_of(checkpoint), tokens)
    assert deviation(logits, expected).within(TOLERANCES[torch.float32])
    assert torch.equal(top.long(), logits.argmax(dim=-1))
    assert torch.allclose(top_logprob, logits.log_softmax(dim=-1).amax(dim=-1), atol=1e-5)


def test_equal_logits_of_two_ranks() -> None:
    """The lower token wins, as on one rank, wherever the equal ones are."""
    together = Together(2)
    logits = torch.tensor([[1.0, 5.0, 2.0, 5.0], [5.0, 0.0, 5.0, 5.0], [0.0, 1.0, 2.0, 3.0]])

    def best(rank: int) -> torch.Tensor:
        own = logits[:, 2 * rank : 2 * rank + 2]
        found = sums_of_ranks.best_of_ranks(
            own, own.argmax(dim=-1), own.logsumexp(dim=-1), torch.tensor(NoExchange(rank, 2).places), ranks=2, tokens=2
        )
        return torch.stack([found[0].float(), *found[1:]])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_ranks, "_all_reduced", together.summed)
        found = together.run(best)
    assert torch.equal(found[0], found[1])
    assert found[0][0].tolist() == [1, 0, 3]
    assert torch.allclose(found[0][2], logits.logsumexp(dim=-1))
    assert torch.allclose(found[0][1], logits.amax(dim=-1) - logits.logsumexp(dim=-1))

"""What a runner gives, as arrays of numpy: run as `python without_torch_calls.py ARTIFACT FILE` in a process where
importing torch fails, and called in one that has torch. Both must give the same bits."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np


class Refused(importlib.abc.Loader):
    """torch can be found, and not be imported."""

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError("this process must not import torch")


class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name.partition(".")[0] != "torch":
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is not None:
            found.loader = Refused()
        return found


def results(artifact: str) -> dict[str, np.ndarray]:
    """Results of every kind of call, past the window, at the borders of chunks, past 4,096 positions."""
    from gptoss_export import Engine, SamplingParams, load

    runner = load(artifact)
    vocabulary, slots = runner.manifest.model.vocab_size, runner.manifest.sizes.max_batch
    tokens = [(7 * index * index + 3) % vocabulary for index in range(4200)]
    found: dict[str, Any] = {}
    for length in 1, 16, 17, 64, 65, 130:
        runner.reset()
        found[f"prefill {length}"] = on_host(runner.prefill(tokens[:length]))
        found[f"decode {length}"] = on_host(runner.decode([5, *[None] * (slots - 1)]))[0]
    runner.reset()
    found["past 4096"] = on_host(runner.prefill(tokens, slots - 1))
    runner.truncate(4195, slots - 1)
    found["truncated"] = on_host(runner.decode([*[None] * (slots - 1), 9]))[-1]
    runner.reset()
    found["score"] = on_host(runner.score(tokens[:150]))
    runner.reset()
    found["every token"] = np.concatenate([on_host(block) for block in runner.prefill_logits(tokens[:90])])
    runner.reset()
    runner.prefill(tokens[:70])
    if runner.executor.paged_memory is not None and slots > 1:
        runner.fork(0, 1)
        found["forked"] = on_host(runner.decode([3, 4, *[None] * (slots - 2)]))[:2]
    given = {
        "greedy": None,
        "drawn": SamplingParams(0.9, seed=3),
        "limited": SamplingParams(0.9, 40, 0.9, seed=3),
        "adjusted": SamplingParams(0.9, seed=5, repetition_penalty=1.3, logit_bias={7: 2.0}, top_logprobs=3),
    }
    for name, sampling in given.items():
        result = runner.generate(tokens[:40], 24, sampling=sampling, stop_tokens=(), keep_logits=True)
        found[f"{name} tokens"], found[f"{name} logprobs"] = result.tokens, result.logprobs
        found[f"{name} logits"] = np.stack([on_host(row) for row in result.logits])
        found[f"{name} top"] = [value for top in result.top_logprobs for pair in top for value in pair]
    prompts = [tokens[start : start + length] for start, length in ((0, 40), (5, 3), (9, 150))][:slots]
    batch = runner.generate_batch(prompts, 20, [SamplingParams(1.0, seed=index) for index in range(len(prompts))])
    found["batch"] = [token for result in batch for token in result.tokens]
    runner.reset()
    engine = Engine(runner)
    handles = [
        engine.submit(tokens[at : at + 5 + 9 * at], 12, sampling=list(given.values())[at % 4], stop_tokens=())
        for at in range(7)
    ]
    while engine.step():  # in this thread: which requests share a step decides their bits
        pass
    found["engine"] = [token for handle in handles for token in handle.result().tokens]
    engine.close()
    return {name: np.array(value) for name, value in found.items()}


def on_host(array: Any) -> np.ndarray:
    return np.array(array.cpu() if hasattr(array, "cpu") else array)


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusing())
    np.savez(sys.argv[2], **results(sys.argv[1]))  # type: ignore[arg-type]
    assert "torch" not in sys.modules

"""The examples run as their docstrings say, and print what Hugging Face's model says."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import greedy_tokens, token_logprobs
from tokenizers import Tokenizer

from gptoss_export import SamplingParams, load

EXAMPLES = Path(__file__).parents[2] / "examples"
HELLO = [72, 101, 108, 108, 111]  # the prompt of build_and_run.py


def run(name: str, *arguments: object) -> list[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def until_stop(tokens: list[int], stop: int) -> list[int]:
    return tokens[: tokens.index(stop) + 1] if stop in tokens else tokens


def test_build_and_run(artifact: Path, checkpoints: dict[str, Path], transformer: Any) -> None:
    verified, greedy, sampled = run("build_and_run.py", checkpoints["hf"], artifact)
    stop = transformer.config.eos_token_id
    assert verified == "verified"
    name, *tokens = greedy.split()
    assert name == "greedy"
    assert list(map(int, tokens)) == until_stop(greedy_tokens(transformer, HELLO, 16), stop)
    name, *drawn = sampled.split()
    assert name == "sampled"
    assert drawn != tokens
    assert list(map(int, drawn)) == until_stop(list(map(int, drawn)), stop)
    assert len(drawn) == 16 or int(drawn[-1]) == stop


def test_stream(artifact: Path, transformer: Any) -> None:
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    rows = [line.split(maxsplit=2) for line in run("stream.py", artifact, "Hello")]
    tokens = [int(token) for token, _, _ in rows]
    assert len(tokens) == 32 or tokens[-1] == transformer.config.eos_token_id
    prompt = tokenizer.encode("Hello").ids
    expected = token_logprobs(transformer, [*prompt, *tokens])[len(prompt) - 1 :]
    assert [float(logprob) for _, logprob, _ in rows] == pytest.approx(expected, abs=1e-3)
    assert [text for _, _, text in rows] == [repr(tokenizer.decode([token])) for token in tokens]


def test_many_requests(artifact: Path) -> None:
    """Six requests over three slots: each has the tokens that it has alone."""
    lines = [list(map(int, line.split())) for line in run("many_requests.py", artifact)]
    found = {number: tokens for number, *tokens in lines}
    runner = load(artifact)
    for number in range(6):
        alone = runner.generate([*HELLO, number], 8, SamplingParams(temperature=0.8, seed=number))
        assert found.pop(number) == alone.tokens
    assert not found


def test_score(artifact: Path, transformer: Any) -> None:
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    encoding = tokenizer.encode("Hello, world")
    *rows, last = run("score.py", artifact, "Hello, world")
    expected = token_logprobs(transformer, encoding.ids)
    assert [float(row.split()[0]) for row in rows] == pytest.approx(expected, abs=1e-3)
    assert [row.split()[1] for row in rows] == encoding.tokens[1:]
    name, perplexity = last.split()
    assert name == "perplexity"
    assert float(perplexity) == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-2)


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "build_and_run.py",
        "many_requests.py",
        "stream.py",
        "score.py",
        "finetune.py",  # tests/training
        "ray_serve.py",  # tests/replicas
    }

"""`gptoss-export run`: its tokens and text against Hugging Face's model and tokenizer, and what each option changes."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import greedy_tokens, invoke, token_logprobs
from safetensors.torch import load_file
from tokenizers import Tokenizer

PROMPT = [5, 6, 7]
HOT = ("--temperature", 50, "--no-stop")  # nearly uniform: 12 tokens drawn are never the most likely ones


@pytest.fixture(scope="module")
def greedy(transformer: Any) -> list[int]:
    return greedy_tokens(transformer, PROMPT, 12)


def run_tokens(artifact: Path, *options: object) -> list[int]:
    done = invoke("run", artifact, "--tokens", "5 6 7", "--max-new-tokens", 12, "--json", *options)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["tokens"]


def with_stop_tokens(artifact: Path, folder: Path, stop_tokens: list[int]) -> Path:
    """A copy of the artifact, as a build with these stop tokens makes it."""
    shutil.copytree(artifact, folder, copy_function=os.link)
    manifest = json.loads((artifact / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"stop_tokens": stop_tokens}))
    return folder


def test_json_against_transformers(
    cli: Callable[..., tuple[int, str, str]], artifact: Path, transformer: Any, greedy: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "logits.safetensors"
    code, out, err = cli(
        *("run", artifact, "--tokens", "5,6 7", "--max-new-tokens", 12, "--no-stop", "--json", "--logprobs"),
        *("--save-logits", file),
    )
    assert code == 0, err
    facts = json.loads(out)
    assert facts["prompt_tokens"] == PROMPT
    assert facts["tokens"] == greedy
    assert facts["finish"] == "length"
    expected = token_logprobs(transformer, [*PROMPT, *greedy])[len(PROMPT) - 1 :]
    assert facts["logprobs"] == pytest.approx(expected, abs=1e-3)
    assert facts["text"] == Tokenizer.from_file(str(artifact / "tokenizer.json")).decode(greedy)
    assert all(facts["timing"][name] > 0 for name in ("load_s", "ttft_s", "decode_tok_s"))
    logits = load_file(file)["logits"]
    assert logits.shape == (12, 512)
    chosen = logits.log_softmax(-1)[range(12), greedy]
    assert chosen.tolist() == pytest.approx(expected, abs=1e-3)


def test_streamed_text_is_what_the_tokenizer_decodes(
    cli: Callable[..., tuple[int, str, str]], artifact: Path, transformer: Any
) -> None:
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    expected = tokenizer.decode(greedy_tokens(transformer, tokenizer.encode("Hello").ids, 12))
    code, out, err = cli("run", artifact, "--prompt", "Hello", "--max-new-tokens", 12, "--no-stop")
    assert code == 0, err
    assert out == expected + "\n"


def test_logprobs_are_printed_a_token_a_line(artifact: Path, transformer: Any, greedy: list[int]) -> None:
    done = invoke("run", artifact, "--tokens", "5 6 7", "--max-new-tokens", 4, "--no-stop", "--logprobs")
    assert done.exit_code == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(token) for token, _ in rows] == greedy[:4]
    expected = token_logprobs(transformer, [*PROMPT, *greedy[:4]])[len(PROMPT) - 1 :]
    assert [float(rest.split("  ")[0]) for _, rest in rows] == pytest.approx(expected, abs=1e-3)


def test_tokens_file(artifact: Path, greedy: list[int], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("5, 6\n7")
    done = invoke("run", artifact, "--tokens-file", tokens, "--max-new-tokens", 3, "--json", "--no-stop")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] == PROMPT
    assert json.loads(done.stdout)["tokens"] == greedy[:3]


def test_temperature_and_seed_reach_the_result(artifact: Path, greedy: list[int]) -> None:
    first = run_tokens(artifact, *HOT)
    assert first != greedy
    assert run_tokens(artifact, *HOT) == first
    other = run_tokens(artifact, *HOT, "--seed", 1)
    assert other != first
    assert run_tokens(artifact, *HOT, "--seed", 1) == other


def test_top_k_reaches_the_result(artifact: Path, greedy: list[int]) -> None:
    assert run_tokens(artifact, *HOT, "--top-k", 1) == greedy


def test_top_p_reaches_the_result(artifact: Path, greedy: list[int]) -> None:
    assert run_tokens(artifact, *HOT, "--top-p", 1e-6) == greedy


def test_min_p_reaches_the_result(artifact: Path, greedy: list[int]) -> None:
    assert run_tokens(artifact, *HOT, "--min-p", 1) == greedy


def test_stop_tokens(artifact: Path, greedy: list[int], tmp_path: Path) -> None:
    stop = next(token for token in greedy[2:] if token not in greedy[:2])
    stopped = greedy[: greedy.index(stop) + 1]
    folder = with_stop_tokens(artifact, tmp_path / "stops", [stop])
    assert run_tokens(folder) == stopped  # those of the artifact
    assert run_tokens(folder, "--no-stop") == greedy
    other = greedy[0]
    assert run_tokens(folder, "--stop-token", other) == [other]  # in place of the artifact's
    assert run_tokens(folder, "--stop-token", 0, "--stop-token", other) == [other]


def test_finish_says_why_a_sequence_ended(artifact: Path, greedy: list[int]) -> None:
    arguments = ("run", artifact, "--tokens", "5 6 7", "--max-new-tokens", 12, "--json", "--stop-token", greedy[0])
    assert json.loads(invoke(*arguments).stdout)["finish"] == "stop"

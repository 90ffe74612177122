"""`run --prompts-file`: many requests from a file, their results, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import greedy_tokens, invoke
from tokenizers import Tokenizer

from gptoss_export.runtime.packing import PackedChunk
from gptoss_export.runtime.program_executor import ProgramExecutor


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def results(*arguments: object) -> list[dict[str, Any]]:
    done = invoke("run", *arguments)
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_many_requests_against_transformers(artifact: Path, transformer: Any, tmp_path: Path) -> None:
    """Seven requests over three slots, text among them; results in the order of the file."""
    prompts = [[5, 6, 7], [40 * index % 500 for index in range(70)], [9], [8, 9], [7] * 33, [1, 2]]
    lines = [{"tokens": prompt, "max_new_tokens": 3 + index} for index, prompt in enumerate(prompts)]
    path = written(tmp_path, *lines[:3], "", {"prompt": "Hello, world"}, *lines[3:])
    found = results(artifact, "--prompts-file", path, "--max-new-tokens", 4, "--no-stop", "--logprobs")
    assert [result["line"] for result in found] == [1, 2, 3, 5, 6, 7, 8]
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    text = tokenizer.encode("Hello, world").ids
    for result, prompt, count in zip(found, [*prompts[:3], text, *prompts[3:]], [3, 4, 5, 4, 6, 7, 8], strict=True):
        assert result["prompt_tokens"] == prompt and result["finish"] == "length"
        assert result["tokens"] == greedy_tokens(transformer, prompt, count)
        assert result["text"] == tokenizer.decode(result["tokens"])
        assert len(result["logprobs"]) == count and result["timing"]["ttft_s"] > 0


def test_every_option_of_a_line(artifact: Path, tmp_path: Path) -> None:
    """A line's own values win over those of the command line; what it leaves out is the command line's."""
    own = {
        "temperature": 30.0,
        "top_k": 400,
        "top_p": 0.99,
        "min_p": 0.01,
        "seed": 3,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "logit_bias": {"7": 1.5},
        "min_new_tokens": 2,
        "top_logprobs": 2,
        "max_new_tokens": 8,
        "stop_tokens": [],
        "stop": ["not in the answer"],
    }
    path = written(tmp_path, {"tokens": [5, 6]} | own, {"tokens": [5, 6]}, {"tokens": [5, 6], "seed": 3})
    options = (
        "--temperature",
        30,
        "--top-k",
        400,
        "--top-p",
        0.99,
        "--min-p",
        0.01,
        "--repetition-penalty",
        1.1,
        "--presence-penalty",
        0.2,
        "--frequency-penalty",
        0.1,
        "--logit-bias",
        "7=1.5",
        "--min-new-tokens",
        2,
        "--top-logprobs",
        2,
        "--max-new-tokens",
        8,
        "--no-stop",
    )
    first, second, third = (result["tokens"] for result in results(artifact, "--prompts-file", path, *options))
    alone = invoke("run", artifact, "--tokens", "5,6", "--seed", 3, "--json", *options)
    assert first == third == json.loads(alone.stdout)["tokens"] and len(first) == 8
    assert second != first  # of seed 0
    path = written(tmp_path, {"tokens": [5, 6], "stop_tokens": [first[2]]} | {"seed": 3})
    (stopped,) = results(artifact, "--prompts-file", path, *options)
    assert stopped["tokens"] == first[:3] and stopped["finish"] == "stop"


def test_several_answers_to_a_prompt(artifact: Path, tmp_path: Path) -> None:
    """They are those of the seeds from the line's own on; `top_logprobs` come with each token."""
    line = {"tokens": [5, 6], "temperature": 30.0, "max_new_tokens": 6, "stop_tokens": [], "top_logprobs": 2}
    path = written(tmp_path, line | {"n": 3, "seed": 4}, *(line | {"seed": seed} for seed in (4, 5, 6)))
    several, *single = results(artifact, "--prompts-file", path)
    assert [answer["tokens"] for answer in several["answers"]] == [result["tokens"] for result in single]
    assert len({tuple(result["tokens"]) for result in single}) == 3
    assert [len(top) for top in single[0]["top_logprobs"]] == [2] * 6


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        ([], ["no lines, expected a JSON object on each"]),
        (
            ["[1]", "{", {"tokens": [1], "prompt": "a"}, {}, {"tokens": [1], "heat": 1}],
            [
                "line 1: holds a list, expected an object",
                "line 2: cannot be read as JSON",
                "line 3: expected one of tokens, prompt",
                "line 4: expected one of tokens, prompt",
                "line 5: heat: unknown; expected tokens, prompt, temperature",
            ],
        ),
        (
            [{"tokens": [1]}, {"tokens": [512]}, {"tokens": []}, {"tokens": "1,2"}, {"tokens": [1] * 4401}],
            [
                "line 2: token 512: expected ids of 0 to 511",
                "line 3: prompt: no tokens",
                "line 4: tokens: expected whole numbers",
                "line 5: prompt: 4401 tokens exceed the context of 4400",
            ],
        ),
        (
            [
                {"tokens": [1], "temperature": -1, "top_p": "x"},
                {"tokens": [1], "max_new_tokens": 0},
                {"tokens": [1], "stop_tokens": 3},
                {"prompt": 3},
                {"tokens": [1], "n": 0},
                {"tokens": [1], "stop": [""]},
                {"tokens": [1], "logit_bias": {"512": 1}},
            ],
            ["line 1: sampling", "temperature: found -1", "top_p: found 'x'", "line 2: max_new", "line 3", "line 4: ",
             "line 5: n: found 0", "line 6: stop", "line 7: "],
        ),
    ],
    ids=["empty", "lines", "tokens", "options"],
)  # fmt: skip
def test_wrong_lines_are_named_before_anything_runs(
    artifact: Path, tmp_path: Path, lines: list[Any], messages: list[str]
) -> None:
    done = invoke("run", artifact, "--prompts-file", written(tmp_path, *lines))
    assert done.exit_code == 2 and done.stdout == ""
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokens", "1"), "found --tokens and --prompts-file"),
        (("--save-logits", "logits"), "--save-logits: found --prompts-file as well"),
    ],
)
def test_options_that_do_not_fit(artifact: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = invoke("run", artifact, "--prompts-file", written(tmp_path, {"tokens": [1]}), *options)
    assert done.exit_code == 2 and message in done.stderr


def test_a_request_that_fails(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line says why, the others are served, and the command fails at its end."""
    whole = ProgramExecutor._hidden

    def failing(self: ProgramExecutor, chunk: PackedChunk) -> torch.Tensor:
        hidden = whole(self, chunk)
        for piece in chunk.pieces:
            if list(piece.part.tokens) == [13]:
                hidden[piece.row] = float("nan")
        return hidden

    monkeypatch.setattr(ProgramExecutor, "_hidden", failing)
    path = written(tmp_path, {"tokens": [5]}, {"tokens": [13]}, {"tokens": [7]})
    done = invoke("run", artifact, "--prompts-file", path, "--max-new-tokens", 4, "--no-stop")
    assert done.exit_code == 2
    first, second, third = (json.loads(line) for line in done.stdout.splitlines())
    assert len(first["tokens"]) == len(third["tokens"]) == 4 and second["tokens"] == []
    assert "is nan, expected a finite number" in second["error"]
    assert "1 of 3 requests failed" in done.stderr and "line 2: slot" in done.stderr

"""`run --prompts-file FILE`: one request a line, one result a line, in the order of the file.

A line is a JSON object with `tokens` (token ids) or `prompt` (text), and any of the options below, `stop` (a text or
several at which the answer ends) and `n` (so many answers, drawn with the seeds seed, seed + 1, ...). What a line
leaves out has the value of the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .params import read_text
from .tables import print_json
from .text import open_text

if TYPE_CHECKING:
    from ..runtime.request_handle import RequestHandle
    from ..runtime.runner import Runner
    from ..runtime.running_sequence import Request
    from ..runtime.sampling_params import SamplingParams
    from ..text.stop_strings import StopStrings
    from ..text.tokenizer import Text

OPTION = "--prompts-file"
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_new_tokens",
    "top_logprobs",
)
_OTHERS = ("max_new_tokens", "stop_tokens")
_MOST_ANSWERS = 128


@dataclass(frozen=True)
class Defaults:
    """What a line leaves out: the options of the command line. stop_tokens None: those of the artifact. adapter: that
    all are computed with."""

    max_new_tokens: int
    sampling: SamplingParams
    stop_tokens: Sequence[int] | None
    stops: tuple[str, ...]
    adapter: str | None = None


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file, with the numbers of their lines. Empty lines are left out.

    Raises UsageError naming every line that is no such object, and for a file without any.
    """
    from ..errors import UsageError, raise_all
    from ..json_file import parse_object

    found: list[tuple[int, dict[str, Any]]] = []
    problems: list[str] = []
    for number, line in enumerate(read_text(OPTION, path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = parse_object(line.encode(), UsageError, subject=f"line {number}")
        except UsageError as error:
            problems.append(str(error))
            continue
        if len({"tokens", "prompt"} & data.keys()) != 1:
            problems.append(f"line {number}: expected one of tokens, prompt")
        known = ("tokens", "prompt", *_SAMPLING, *_OTHERS, "stop", "n")
        problems += [f"line {number}: {key}: unknown; expected {', '.join(known)}" for key in data if key not in known]
        found.append((number, data))
    if not found and not problems:
        problems = ["no lines, expected a JSON object on each"]
    raise_all(UsageError, f"{OPTION} {path}: cannot be run", problems)
    return found


def run_lines(
    runner: Runner,
    path: Path,
    lines: Sequence[tuple[int, dict[str, Any]]],
    defaults: Defaults,
    special_tokens: bool,
    logprobs: bool,
) -> None:
    """Run all requests and print their results. Raises UsageError naming every request that does not fit the artifact;
    then nothing was run. Raises RunError at the end where a request failed; its line of the output says why."""
    from ..errors import RunError, raise_all
    from ..runtime.engine import Engine

    with_text = bool(defaults.stops) or any("prompt" in data or "stop" in data for _, data in lines)
    text = open_text(runner, OPTION if with_text else "--special-tokens" if special_tokens else None, special_tokens)
    asked = _asked(runner, path, lines, defaults, text)
    engine = Engine(runner)
    handles = iter(engine.submit_all([request for line in asked for request in line.requests]))
    failed: list[str] = []
    for line in asked:
        answers = [_result(next(handles), text, line.ending, logprobs) for _ in line.requests]
        failed += [f"line {line.number}: {answer['error']}" for answer in answers if "error" in answer]
        print_json({"line": line.number} | (answers[0] if line.single else {"answers": answers}))
    engine.close()
    raise_all(RunError, f"{OPTION} {path}: {len(failed)} of {len(lines)} requests failed", failed)


@dataclass(frozen=True)
class _Asked:
    """What a line asks for. single: one answer, since the line names no `n`."""

    number: int
    requests: list[Request]
    ending: StopStrings | None
    single: bool


def _asked(
    runner: Runner,
    path: Path,
    lines: Sequence[tuple[int, dict[str, Any]]],
    defaults: Defaults,
    text: Text | None,
) -> list[_Asked]:
    from ..errors import GptOssExportError, UsageError, raise_all
    from ..runtime.checked_request import checked_requests

    found, problems = [], []
    for number, data in lines:
        try:
            tokens = data["tokens"] if "tokens" in data else _encode(text, data["prompt"])
            sampling = replace(defaults.sampling, **{name: data[name] for name in _SAMPLING if name in data})
            count, stops = (data.get(name, getattr(defaults, name)) for name in _OTHERS)
            answers = _whole_number("n", data.get("n", 1), 1, _MOST_ANSWERS)
            seeds = [(sampling.seed + index + 2**63) % 2**64 - 2**63 for index in range(answers)]
            drawn = [replace(sampling, seed=seed) for seed in seeds]
            adapters = runner.loaded_adapters.find_all([defaults.adapter] * answers)
            requests = checked_requests(
                runner.manifest, runner.slots, [tokens] * answers, count, drawn, stops, adapters=adapters
            )
            ending = _ending(text, data.get("stop", list(defaults.stops)))
            if ending is not None:
                requests = [replace(request, ends=ending.ends) for request in requests]
            found.append(_Asked(number, requests, ending, single="n" not in data))
        except GptOssExportError as error:
            problems.append(f"line {number}: {error}")
    raise_all(UsageError, f"{OPTION} {path}: requests that the artifact cannot run", problems)
    return found


def _whole_number(name: str, value: Any, least: int, most: int) -> int:
    from ..errors import UsageError
    from ..values import shown, whole_number

    number = whole_number(value)
    if number is None or not least <= number <= most:
        raise UsageError(f"{name}: found {shown(value)}, expected a whole number of {least} to {most}")
    return number


def _ending(text: Text | None, stops: Any) -> StopStrings | None:
    from ..errors import UsageError
    from ..text.stop_strings import StopStrings
    from ..values import shown

    listed = [stops] if isinstance(stops, str) else stops
    if not isinstance(listed, list) or not all(isinstance(stop, str) and stop for stop in listed):
        raise UsageError(f"stop: found {shown(stops)}, expected a text or a list of texts")
    assert text is not None or not listed  # a file with text was opened with it
    return StopStrings(text, tuple(listed)) if text is not None and listed else None


def _encode(text: Text | None, prompt: Any) -> list[int]:
    from ..errors import UsageError
    from ..values import shown

    assert text is not None  # a file with text was opened with it
    if not isinstance(prompt, str):
        raise UsageError(f"prompt: found {shown(prompt)}, expected text")
    return text.encode(prompt)


def _result(handle: RequestHandle, text: Text | None, ending: StopStrings | None, logprobs: bool) -> dict[str, Any]:
    try:
        generation = handle.result()
    except Exception as error:  # of this request alone
        return {"prompt_tokens": list(handle.request.prompt), "tokens": handle.tokens, "error": str(error)}
    found: dict[str, Any] = {
        "prompt_tokens": generation.prompt_tokens,
        "tokens": generation.tokens,
        "finish": generation.finish,
        "timing": {"ttft_s": generation.ttft_s, "decode_tok_s": generation.decode_tok_s},
    }
    if logprobs:
        found["logprobs"] = generation.logprobs
    if generation.top_logprobs:
        found["top_logprobs"] = [dict(top) for top in generation.top_logprobs]
    if text is not None:
        decoded = text.decode(generation.tokens)
        found["text"] = decoded if ending is None else ending.cut(decoded)
    return found

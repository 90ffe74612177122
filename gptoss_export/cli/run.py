"""gptoss-export run"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import reports_errors
from .params import (
    Biases,
    Integers,
    NamedFolder,
    UTF8Text,
    artifact_argument,
    check_new_file,
    hashes_option,
    json_option,
    kv_memory_option,
    read_text,
    trust_option,
    trusted,
)
from .plain import for_stdout
from .prompts_file import OPTION, Defaults, read_lines, run_lines
from .tables import print_json
from .text import open_text

if TYPE_CHECKING:
    from ..runtime.generation import Generation, Token
    from ..runtime.runner import Runner
    from ..text.stop_strings import StopStrings
    from ..text.tokenizer import Text


@click.command("run")
@artifact_argument
@click.option("--prompt", type=UTF8Text(), help="Text to continue. Needs the artifact's tokenizer.json.")
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of text to continue, in UTF-8, as it is: a line break at its end counts. `-` reads standard input.",
)
@click.option("--tokens", type=Integers(), help="Token ids to continue.")
@click.option(
    "--tokens-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of token ids to continue, separated by commas or white space. `-` reads standard input.",
)
@click.option(
    "--prompts-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='Many requests, run together: one JSON object a line, {"tokens": [1, 2]} or {"prompt": "text"}, with its own '
    "max_new_tokens, temperature, top_k, top_p, min_p, seed and stop_tokens where they differ. Prints one JSON object "
    "a line, in the order of the file. `-` reads standard input.",
)
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Most tokens to generate.")
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0: always the most likely token. Above: sample."
)
@click.option("--top-k", type=int, default=0, show_default=True, help="Sample among the k most likely tokens. 0: all.")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample among the fewest most likely tokens whose probability reaches p.",
)
@click.option(
    "--min-p",
    type=float,
    default=0.0,
    show_default=True,
    help="Sample among tokens with at least this share of the probability of the most likely one.",
)
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less.")
@click.option(
    "--presence-penalty", type=float, default=0.0, show_default=True, help="Lowers the logits of tokens in the answer."
)
@click.option(
    "--frequency-penalty",
    type=float,
    default=0.0,
    show_default=True,
    help="The same, for each time that they occur.",
)
@click.option("--logit-bias", type=Biases(), help="Added to the logits of some tokens.")
@click.option("--min-new-tokens", type=int, default=0, show_default=True, help="Stop tokens are not chosen before.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same tokens.")
@click.option(
    "--stop-token",
    "stop_tokens",
    type=int,
    multiple=True,
    help="Token id to stop at. May be repeated.  [default: the artifact's stop tokens]",
)
@click.option("--stop", "stops", multiple=True, type=UTF8Text(), help="Text to stop at. May be repeated.")
@click.option("--no-stop", is_flag=True, help="Stop at no token.")
@click.option(
    "--special-tokens",
    is_flag=True,
    help="Show special tokens such as <|end|> in the text. Without it they are left out.",
)
@click.option(
    "--fixed-width",
    is_flag=True,
    help="Run every step at the largest width: a request has the same bits alone and beside others. Slower for few.",
)
@click.option("--logprobs", is_flag=True, help="Print each token with its log probability.")
@click.option(
    "--top-logprobs",
    type=int,
    default=0,
    metavar="N",
    help="With --json: the N most likely tokens at each place, with their log probabilities.",
)
@click.option(
    "--save-logits",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the logits that each token was chosen from as safetensors: float32 [tokens, vocabulary].",
)
@click.option(
    "--adapter",
    type=NamedFolder(),
    help="LoRA adapter of PEFT to run with, if the build has --adapter-slots. NAME is what errors call it.",
)
@kv_memory_option
@hashes_option
@trust_option
@json_option
@reports_errors
def command(
    artifact: Path,
    prompt: str | None,
    prompt_file: Path | None,
    tokens: list[int] | None,
    tokens_file: Path | None,
    prompts_file: Path | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    logit_bias: dict[int, float] | None,
    min_new_tokens: int,
    seed: int,
    stop_tokens: tuple[int, ...],
    stops: tuple[str, ...],
    no_stop: bool,
    special_tokens: bool,
    fixed_width: bool,
    logprobs: bool,
    top_logprobs: int,
    save_logits: Path | None,
    adapter: tuple[str, Path] | None,
    kv_memory: int | None,
    verify_hashes: bool,
    trust: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Continue a prompt, or many, with ARTIFACT."""
    from ..errors import UsageError
    from ..loading import load
    from ..runtime.sampling_params import SamplingParams
    from ..text.stop_strings import StopStrings

    prompts = {
        "--prompt": prompt,
        "--prompt-file": prompt_file,
        "--tokens": tokens,
        "--tokens-file": tokens_file,
        OPTION: prompts_file,
    }
    given = [option for option, value in prompts.items() if value is not None]
    if len(given) != 1:
        raise UsageError(f"one of {', '.join(prompts)} is needed; found {' and '.join(given) or 'none'}")
    if no_stop and stop_tokens:
        raise UsageError("--no-stop: found --stop-token as well; give one of them")
    sampling = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias or {},
        min_new_tokens=min_new_tokens,
        top_logprobs=top_logprobs,
    )
    stops_at = () if no_stop else stop_tokens or None
    if "" in stops:
        raise UsageError("--stop: found an empty text, expected one character or more")
    if prompts_file is not None and save_logits is not None:
        raise UsageError(f"--save-logits: found {OPTION} as well; give one of them")
    lines = [] if prompts_file is None else read_lines(prompts_file)
    check_new_file("--save-logits", save_logits, artifact)
    if prompt_file is not None:
        prompt = read_text("--prompt-file", prompt_file)
    if tokens_file is not None:
        tokens = _read_tokens(tokens_file)
    runner = load(
        artifact,
        verify_hashes,
        tune_process=True,
        trust=trusted(trust),
        fixed_width=fixed_width,
        kv_memory=kv_memory,
    )
    name = None
    if adapter is not None:
        name, folder = adapter
        runner.load_adapter(name, folder)
    if prompts_file is not None:
        defaults = Defaults(max_new_tokens, sampling, stops_at, stops, name)
        run_lines(runner, prompts_file, lines, defaults, special_tokens, logprobs)
        return
    for_text = {given[0]: prompt is not None, "--special-tokens": special_tokens, "--stop": bool(stops)}
    wanted_by = next((option for option, wanted in for_text.items() if wanted), None)
    text = open_text(runner, wanted_by, special_tokens)
    if prompt is not None and text is not None:
        tokens = text.encode(prompt)
    if not tokens:
        raise UsageError(f"{given[0]}: holds no tokens, expected one or more")
    ending = StopStrings(text, stops) if text is not None and stops else None
    ends = None if ending is None else ending.ends
    if text is not None and not (as_json or save_logits or logprobs):
        _print_stream(runner.stream(tokens, max_new_tokens, sampling, stops_at, ends, name), text, ending)
        return
    result = runner.generate(tokens, max_new_tokens, sampling, stops_at, save_logits is not None, ends, name)
    if save_logits is not None:
        _save(result.logits, save_logits)
    if as_json:
        print_json(_json(runner, result, text, ending, logprobs))
    elif logprobs:
        for token, value in zip(result.tokens, result.logprobs, strict=True):
            shown = f"  {text.decode([token])!r}" if text else ""
            click.echo(f"{token}\t{value:.4f}{shown}")
    else:
        click.echo(for_stdout(text.decode(result.tokens)) if text else ",".join(map(str, result.tokens)))


def _json(
    runner: Runner, result: Generation, text: Text | None, ending: StopStrings | None, logprobs: bool
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "prompt_tokens": result.prompt_tokens,
        "tokens": result.tokens,
        "finish": result.finish,
        "timing": {
            "load_s": sum(runner.load_seconds.values()),
            "ttft_s": result.ttft_s,
            "decode_tok_s": result.decode_tok_s,
        },
    }
    if logprobs:
        facts["logprobs"] = result.logprobs
    if result.top_logprobs:
        facts["top_logprobs"] = [dict(top) for top in result.top_logprobs]
    if text is not None:
        decoded = text.decode(result.tokens)
        facts["text"] = decoded if ending is None else ending.cut(decoded)
    return facts


def _print_stream(stream: Iterable[Token], text: Text, ending: StopStrings | None) -> None:
    """Print text while it is generated. What may begin a stop string is held back."""
    from ..text.text_stream import TextStream

    parts, waiting = TextStream(text), ""
    for token in stream:
        waiting += parts.push(token.id)
        certain = len(waiting) if ending is None else ending.certain(ending.cut(waiting))
        if certain:
            sys.stdout.write(for_stdout(waiting[:certain]))
            sys.stdout.flush()
            waiting = waiting[certain:]
    waiting += parts.end()
    click.echo(for_stdout(waiting if ending is None else ending.cut(waiting)))


def _read_tokens(path: Path) -> list[int]:
    from ..errors import UsageError

    try:
        return [int(word) for word in read_text("--tokens-file", path).replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(f"--tokens-file {path}: cannot be read as token ids ({error})") from None


def _save(logits: list[Any], path: Path) -> None:
    """Write logits, of torch or of numpy as the artifact's target gives them. Raises UsageError where it cannot."""
    from ..artifact.atomic_folder import replace_file
    from ..errors import UsageError

    library = "torch" if type(logits[0]).__module__.startswith("torch") else "numpy"
    save_file = importlib.import_module(f"safetensors.{library}").save_file
    try:
        with replace_file(path) as written:
            save_file({"logits": importlib.import_module(library).stack(logits)}, written)
    except OSError as error:  # a full disk too
        raise UsageError(f"--save-logits {path}: cannot be written ({error.strerror})") from error

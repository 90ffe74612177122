"""gptoss-export run"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from .output import Integers, artifact_argument, check_parent, hashes_option, json_option, print_json, reports_errors


@click.command("run")
@artifact_argument
@click.option("--prompt", help="Text to continue; needs the artifact's tokenizer.json.")
@click.option("--tokens", type=Integers(), help="Token ids to continue.")
@click.option("--tokens-file", type=click.Path(path_type=Path), help="File of token ids, by commas or white space.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: the most likely token.")
@click.option("--top-k", type=int, default=0, show_default=True, help="0: all tokens.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stop-token", "stop_tokens", type=int, multiple=True, help="In place of the checkpoint's own.")
@click.option("--no-stop", is_flag=True, help="Go on past stop tokens.")
@click.option("--logprobs", is_flag=True, help="Also print each token's log probability.")
@click.option("--save-logits", type=click.Path(path_type=Path), help="Write float32 logits [N, V] as safetensors.")
@hashes_option
@json_option
@reports_errors
def command(
    artifact, prompt, tokens, tokens_file, max_new_tokens, temperature, top_k, top_p, seed, stop_tokens, no_stop,
    logprobs, save_logits, verify_hashes, as_json,
) -> None:  # fmt: skip
    """Continue a prompt with ARTIFACT."""
    from ..errors import UsageError
    from ..runtime import Runner, Sampling

    given = [name for name, value in
             {"--prompt": prompt, "--tokens": tokens, "--tokens-file": tokens_file}.items()
             if value is not None]  # fmt: skip
    if len(given) != 1:
        raise UsageError(f"one of --prompt, --tokens and --tokens-file is needed; found {' and '.join(given) or 'none'}")
    sampling = Sampling(temperature, top_k, top_p, seed)
    sampling.check()
    check_parent("--save-logits", save_logits)
    if tokens_file is not None:
        tokens = _read_tokens(tokens_file)
    runner = Runner.load(artifact, verify_hashes, own_process=True)
    tokenizer = _tokenizer(runner, required=prompt is not None)
    if prompt is not None:
        tokens = tokenizer.encode(prompt).ids
    if not tokens:
        raise UsageError(f"{given[0]}: holds no tokens, expected one or more")
    stops = () if no_stop else stop_tokens or None
    if as_json or save_logits or tokenizer is None or logprobs:
        result = runner.generate(tokens, max_new_tokens, sampling, stops, keep_logits=save_logits is not None)
        if save_logits is not None:
            _save(result.logits, save_logits)
        text = tokenizer.decode(result.tokens) if tokenizer else None
        if as_json:
            facts = {
                "prompt_tokens": result.prompt_tokens, "tokens": result.tokens, "finish": result.finish,
                "timing": {"load_s": sum(runner.load_seconds.values()), "ttft_s": result.ttft_s,
                           "decode_tok_s": result.decode_tok_s},
            }  # fmt: skip
            facts |= {"logprobs": result.logprobs} if logprobs else {}
            print_json(facts | ({"text": text} if text is not None else {}))
        elif logprobs:
            for token, value in zip(result.tokens, result.logprobs, strict=True):
                name = f"  {tokenizer.decode([token])!r}" if tokenizer else ""
                click.echo(f"{token}\t{value:.4f}{name}")
        else:
            click.echo(text if text is not None else ",".join(map(str, result.tokens)))
        return
    _print_as_it_comes(runner.stream(tokens, max_new_tokens, sampling, stops), tokenizer)


def _print_as_it_comes(stream, tokenizer) -> None:
    """Text while it is generated. What a token adds is known once the text before it decodes whole."""
    tokens, shown = [], ""
    for token in stream:
        tokens.append(token.id)
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # half of a character
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    click.echo(tokenizer.decode(tokens)[len(shown) :])


def _read_tokens(path: Path) -> list[int]:
    from ..errors import UsageError

    try:
        return [int(word) for word in path.read_text().replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise UsageError(f"--tokens-file {path}: cannot be read as token ids ({error})") from None


def _tokenizer(runner, required: bool):
    """The artifact's tokenizer, None where it has none and none is required."""
    from ..errors import UsageError

    path = runner.folder / "tokenizer.json"
    if path.name not in runner.manifest.files:
        if required:
            raise UsageError(f"--prompt: {path} not found; give token ids with --tokens")
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        if required:
            raise UsageError("--prompt: tokenizers is not installed; run: pip install 'gptoss-export[text]'") from None
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UsageError(f"{path}: not a tokenizer ({error})") from None


def _save(logits, path: Path) -> None:
    library = "torch" if type(logits[0]).__module__.startswith("torch") else "numpy"
    save_file = importlib.import_module(f"safetensors.{library}").save_file
    save_file({"logits": importlib.import_module(library).stack(logits)}, path)

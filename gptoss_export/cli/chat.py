"""gptoss-export chat"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import reports_errors
from .params import (
    UTF8Text,
    artifact_argument,
    hashes_option,
    kv_memory_option,
    trust_option,
    trusted,
)
from .plain import say
from .text import without_stderr

if TYPE_CHECKING:
    from ..harmony.messages import Effort


@click.command("chat")
@artifact_argument
@click.option(
    "--effort",
    type=click.Choice(["low", "medium", "high"]),
    default="medium",
    show_default=True,
    help="How long the model reasons.",
)
@click.option("--instructions", type=UTF8Text(), default="", help="What the model is told before the conversation.")
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    help="0: always the most likely token. OpenAI recommends 1 for gpt-oss.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample among the fewest most likely tokens whose probability reaches p.",
)
@click.option("--seed", type=int, help="The same seed draws the same tokens.  [default: another one each time]")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Most tokens of an answer, reasoning included.  [default: what the context has room for]",
)
@click.option(
    "--reasoning/--no-reasoning",
    default=None,
    help="Show the model's reasoning.  [default: where messages are typed in a terminal]",
)
@kv_memory_option
@hashes_option
@trust_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object an answer. For messages that are piped in."
)
@reports_errors
def command(
    artifact: Path,
    effort: Effort,
    instructions: str,
    temperature: float,
    top_p: float,
    seed: int | None,
    max_new_tokens: int | None,
    reasoning: bool | None,
    kv_memory: int | None,
    verify_hashes: bool,
    trust: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Talk with the model of ARTIFACT.

    In a terminal, Ctrl-C stops an answer, Ctrl-D ends, and /help lists the commands. Otherwise each line of standard
    input is a message, and stdout has the answers alone.
    """
    import datetime
    import secrets

    from ..errors import UsageError
    from ..harmony.vocabulary import HarmonyTokenizer
    from ..loading import load
    from ..runtime.engine import Engine
    from ..runtime.sampling_params import SamplingParams
    from .chat_output import Style
    from .chat_piped import answer_lines
    from .chat_session import ChatSession, ChatSettings
    from .chat_terminal import converse, line_reader

    if sys.stdin is None:
        raise UsageError("standard input: found none, expected a terminal, or messages that are piped in")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if as_json and interactive:
        raise UsageError("--json: found a terminal, expected messages that are piped in, one a line")
    seed = secrets.randbits(32) if seed is None else seed
    sampling = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    style = Style.of_stdout(interactive, reasoning)
    settings = ChatSettings(sampling, effort, instructions, datetime.date.today().isoformat(), max_new_tokens)
    read_line = line_reader() if interactive else None
    runner = load(artifact, verify_hashes, tune_process=True, trust=trusted(trust), kv_memory=kv_memory)
    tokenizer = HarmonyTokenizer.open(runner.folder, runner.manifest, without_stderr)
    with Engine(runner) as engine:
        session = ChatSession(engine, tokenizer, settings)
        if read_line is None:
            answer_lines(session, style, as_json)
            return
        say(f"{artifact}: a context of {session.context} tokens, effort {effort}. /help lists the commands.")
        converse(session, style, read_line)

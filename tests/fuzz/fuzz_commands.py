"""Command lines, drawn from click's own tree of commands: options, values by type, hostile values.

Whatever is written lies in the folder `output` of the case: a path of an option is inside of the scratch folder,
unless the option is known to be read only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from fuzz_json import STRINGS
from fuzz_scratch import Scratch
from fuzz_signatures import write_private_key, write_public_key
from fuzz_surface import COUNT, PROMPT, Answers, Bases, Surface, link_folder, wrong
from fuzz_worker import RIGHT, Outcome, Request, Result, Worker
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from gptoss_export.cli import COMMANDS, main

ENDLESS = ("serve",)  # commands that end when they are told to
READ = (
    "artifact",
    "checkpoint",
    "compare_with",
    "prompt_file",
    "tokens_file",
    "tuned_configs",
    "key",
    "sign_key",
    "trust",
)
WRITTEN = (("sign", "artifact"),)  # arguments of a name that other commands only read
PLACES = (
    "{in}/artifact", "{in}/uncompiled", "{in}/checkpoint", "{in}/text", "{in}/tokens", "{in}/empty", "{in}/missing",
    "{in}/artifact/manifest.json", "{in}/tuned.json", "{in}/link", "{in}", "{in}/artifact/..", "{in}/text/x",
)  # fmt: skip
OUTSIDE = ("", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "/proc/self/environ", "/nonexistent/a", "~")
OUTPUTS = (
    "new",
    "other",
    "there",
    "folder",
    "fifo",
    "dangling",
    "loop",
    "no/such/folder/x",
    "new/",
    ".",
    "..x",
    "x" * 300,
)
NUMBERS = (
    "0", "1", "2", "3", "16", "64", "-1", "4400", "4401", "2147483648", "9223372036854775807", "9223372036854775808",
    "1" + "0" * 30, "1" + "0" * 5000, "1.5", "1e3", "0x10", "1_0", "\u0664\u0662", "", " 1 ", "NaN", "one",
)  # fmt: skip
FLOATS = ("0", "0.7", "1", "-1", "1e-45", "1e-320", "1e308", "1e999", "nan", "inf", "-inf", "-0.0", "", "0x1p3", "1,5")
LISTS = ("1,2,3", "1 2 3", "511", "512", "-1", "", ",", "1,,2", "1;2", "1.0", "9" * 400, ",".join(["7"] * 4400))
# Options whose right values may ask for much work, or whose defaults do: these do not.
SHORT = {
    "lengths": ("1", "5,80", "0", "-1", "9999", "", "1,1"),
    "contexts": ("8", "1,80", "0", "-1", "9999", "", "1,1"),
    "batches": ("1", "1,2", "0", "-1", "9", "", "9" * 30),
}
LARGE = ("20b", "120b")  # presets whose checkpoints fill a disk
PROMPT_TEXT = ",".join(map(str, PROMPT))


@dataclass(frozen=True)
class Word:
    """A word of the command line. raw: bytes that are no UTF-8 follow it."""

    text: str
    raw: bool = False


@dataclass(frozen=True)
class CommandCase:
    command: str
    words: tuple[Word, ...]
    stdin: str = ""


class Commands(Surface[CommandCase]):
    """Command lines of all commands."""

    name, share = "command lines", 60

    def __init__(self, bases: Bases) -> None:
        super().__init__(bases)
        self._answers = Answers(bases)
        context = click.Context(main)
        self._commands = {name: main.get_command(context, name) for name in COMMANDS if name not in ENDLESS}

    def cases(self) -> SearchStrategy[CommandCase]:
        return st.sampled_from([*self._commands, "run", "run", "inspect", "nope"]).flatmap(self._cases)

    def _cases(self, name: str) -> SearchStrategy[CommandCase]:
        command = self._commands.get(name)
        params = command.params if command else []
        given = [
            words(param, name)
            for param in params
            if isinstance(param, click.Argument) or param.required or param.name in SHORT
        ]
        options = [words(param, name) for param in params if not isinstance(param, click.Argument)]
        stray = st.sampled_from(["--help", "-h", "--", "-", "--nope", "-x", "@{in}/text", "--version", "{in}/artifact"])
        more = st.one_of(*options * 2, stray.map(lambda text: (Word(text),)))
        # Without what is required nothing happens. So it is left out in one case of ten only.
        fixed = st.tuples(*given)
        groups = st.one_of(
            *[st.tuples(fixed, st.lists(more, max_size=4)).map(lambda pair: [*pair[0], *pair[1]])] * 9,
            st.lists(more, max_size=5),
        )
        flat = groups.map(lambda found: tuple(word for group in found for word in group))
        stdin = st.sampled_from(("", "", "", "text", "tokens", "empty"))
        case = st.builds(CommandCase, command=st.just(name), words=flat, stdin=stdin)
        return st.one_of(case, case, self._usual_run()) if name == "run" else case

    def _usual_run(self) -> SearchStrategy[CommandCase]:
        """A right prompt, so that something runs, with other options."""
        run = self._commands["run"]
        assert run is not None
        known = ("--prompt", "--tokens", "--prompt-file", "--tokens-file")
        free = [
            words(param, "run") for param in run.params if not {*known} & {*param.opts} and param.name != "artifact"
        ]
        start = (Word("{in}/artifact"), Word("--tokens"), Word(PROMPT_TEXT), Word("--max-new-tokens"), Word(str(COUNT)))
        return st.lists(st.one_of(free), max_size=3).map(
            lambda found: CommandCase("run", (*start, *(word for group in found for word in group)))
        )

    def unchanged(self) -> CommandCase:
        words = ("{in}/artifact", "--tokens", PROMPT_TEXT, "--max-new-tokens", str(COUNT), "--json")
        return CommandCase("run", tuple(map(Word, words)))

    def prepare(self, case: CommandCase, scratch: Scratch) -> Request:
        make_inputs(self.bases, scratch)
        argv = [case.command, *self._short([word_text(word, scratch) for word in case.words], case.command)]
        stdin = scratch.input / case.stdin if case.stdin else None
        return Request("build" if case.command == "build" else "command", {"argv": argv}, stdin)

    def _short(self, arguments: list[str], name: str) -> list[str]:
        """The arguments, with a small number for each option of `SHORT` that they do not have."""
        command = self._commands.get(name)
        if command is None:
            return arguments
        try:
            given, _, _ = command.make_parser(click.Context(command)).parse_args(list(arguments))
        except click.UsageError:
            return arguments
        missing = [param for param in command.params if param.name in SHORT and param.name not in given]
        return [*arguments, *(word for param in missing for word in (param.opts[0], SHORT[str(param.name)][0]))]

    def judge(self, case: CommandCase, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        if result.status == 1:
            return RIGHT if case.command == "verify" else wrong("exit 1, which says that a check failed")
        said = [word.text for word in case.words]
        if not result.stdout and not may_say_nothing(case):
            return wrong("exit 0, and nothing on stdout")
        if "--json" in said and result.stdout.startswith("{"):
            value = json.loads(result.stdout)
            if case.command == "run" and PROMPT_TEXT in said and not {"--temperature", "--stop-token"} & {*said}:
                expected, found = self._answers.expected(scratch, worker), value["tokens"]
                if found[:COUNT] != expected[: len(found)] or value["prompt_tokens"] != PROMPT:
                    return wrong(f"tokens {found}, expected {expected}")
        return RIGHT


def may_say_nothing(case: CommandCase) -> bool:
    """Whether success without a word is right: no tokens came, or nobody asked anything."""
    if case.command == "run":
        return all(word.text != "--logprobs" for word in case.words)
    return case.command == "chat" and case.stdin in ("", "empty")


def words(param: click.Parameter, command: str) -> SearchStrategy[tuple[Word, ...]]:
    """A parameter with a value: for an option the name and the value, as two words or as one."""
    values = st.builds(Word, text=_values(param, command), raw=st.sampled_from((False,) * 19 + (True,)))
    if isinstance(param, click.Argument):
        return values.map(lambda word: (word,))
    names = st.sampled_from([*param.opts, *param.secondary_opts])
    if isinstance(param, click.Option) and param.is_flag:
        return names.map(lambda name: (Word(name),))
    apart = st.tuples(names.map(Word), values)
    joined = st.tuples(names, values).map(lambda pair: (Word(f"{pair[0]}={pair[1].text}", pair[1].raw),))
    return st.one_of(apart, apart, apart, joined, names.map(lambda name: (Word(name),)))


def _values(param: click.Parameter, command: str) -> SearchStrategy[str]:
    """Values for a parameter by its type, right ones among them."""
    texts = [text for name, text in STRINGS.items() if text is not None and name not in ("absolute", "nul")]
    kind = param.type
    if isinstance(kind, click.Path):
        if (command, param.name) in WRITTEN:
            return st.sampled_from(("{out}/artifact", "{out}/artifact", "{out}/folder", "{out}/there", "{out}/no"))
        if param.name in READ:
            return st.sampled_from((*_likely(param), *PLACES, *OUTSIDE))
        return st.sampled_from([f"{{out}}/{name}" for name in OUTPUTS])
    if isinstance(kind, click.Choice):
        return st.sampled_from([choice for choice in map(str, kind.choices) if choice not in LARGE] * 3 + texts)
    if param.name == "layers":  # a number that is right, and large, takes long
        return st.sampled_from([number for number in NUMBERS if number not in ("64", "4400", "4401")])
    if isinstance(kind, click.types.IntParamType):
        return st.sampled_from(NUMBERS)
    if isinstance(kind, click.types.FloatParamType):
        return st.sampled_from(FLOATS)
    if param.name in SHORT:
        return st.sampled_from(SHORT[str(param.name)])
    if kind.name == "N,N,...":
        return st.sampled_from(LISTS)
    return st.sampled_from([*_usual(str(param.name)), *texts])


def _likely(param: click.Parameter) -> tuple[str, ...]:
    """Paths that are right, so that a command does more than refuse them."""
    likely = {
        "artifact": ("{in}/artifact", "{in}/uncompiled"),
        "compare_with": ("{in}/uncompiled",),
        "checkpoint": ("{in}/checkpoint",),
        "prompt_file": ("{in}/text", "-"),
        "tokens_file": ("{in}/tokens", "-"),
        "tuned_configs": ("{in}/tuned.json",),
        "key": ("{in}/key.pem",),
        "sign_key": ("{in}/key.pem",),
        "trust": ("{in}/key.pub",),
    }
    return likely[str(param.name)] * 12


def _usual(name: str) -> tuple[str, ...]:
    usual = {
        "target": ("aoti", "onnx", "tensorrt") * 4,
        "arch": ("sm_90", "x86_64-AVX2", "sm_90,sm_80", "sm_90,sm_90", "sm_1", ",") * 2,
        "layout": ("hf", "original") * 6,
        "experts": ("mxfp4", "bf16") * 6,
        "only": ("attention", "unembed"),
        "prompt": ("Hello",) * 6,
    }
    return usual.get(name, ())


def make_inputs(bases: Bases, scratch: Scratch) -> None:
    """What the words of a command line name."""
    link_folder(bases.artifact, scratch.input / "artifact")
    link_folder(bases.uncompiled, scratch.input / "uncompiled")
    link_folder(bases.checkpoints["hf"], scratch.input / "checkpoint")
    os.link(bases.tuned_configs, scratch.input / "tuned.json")
    (scratch.input / "text").write_text("Hello, world\n", encoding="utf-8")
    (scratch.input / "tokens").write_text("1, 2 3\n", encoding="utf-8")
    (scratch.input / "empty").touch()
    (scratch.input / "link").symlink_to("link")
    (scratch.output / "there").write_text("there\n", encoding="utf-8")
    (scratch.output / "folder").mkdir()
    link_folder(bases.uncompiled, scratch.output / "artifact")
    write_private_key(scratch.input / "key.pem")
    write_public_key(scratch.input / "key.pub")
    os.mkfifo(scratch.output / "fifo")
    (scratch.output / "dangling").symlink_to("nothing")
    (scratch.output / "loop").symlink_to("loop")


def word_text(word: Word, scratch: Scratch) -> str:
    """The word with the paths of a case."""
    text = word.text.replace("{in}", str(scratch.input)).replace("{out}", str(scratch.output))
    return text + ("\udce9\udcff" if word.raw else "")


def written_paths(case: CommandCase, scratch: Scratch) -> list[Path]:
    """The paths of a command line that an option or an argument may write to."""
    context: Any = click.Context(main)
    command = main.get_command(context, case.command)
    if command is None:
        return []
    names = {
        name
        for param in command.params
        if isinstance(param.type, click.Path) and param.name not in READ
        for name in (*param.opts, *param.secondary_opts)
    }
    found = []
    for before, word in zip([Word(""), *case.words], case.words, strict=False):
        name, equals, value = word.text.partition("=")
        if equals and name in names:
            found.append(value)
        elif before.text in names:
            found.append(word.text)
    return [Path(word_text(Word(value), scratch)) for value in found]

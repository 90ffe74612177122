"""Commands in a conversation: lines that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from ..artifact.atomic_folder import replace_file
from ..errors import UsageError
from ..harmony.messages import Effort
from .chat_session import ChatSession
from .params import check_new_file
from .plain import say

_SLASH = "/"


@dataclass(frozen=True)
class Command:
    """A command. `run` gets the conversation and the rest of the line, and returns whether the program goes on."""

    usage: str
    help: str
    run: Callable[[ChatSession, str], bool]


def message_of(line: str) -> str | None:
    """The user's message in a line; None where the line is a command. Two slashes at the beginning stand for one of a
    message."""
    if line.startswith(2 * _SLASH):
        return line[1:]
    return None if line.startswith(_SLASH) else line


def run_command(session: ChatSession, line: str) -> bool:
    """Run the command in a line. Returns whether the program goes on.

    Raises UsageError for what is no command, and for what a command cannot do.
    """
    name, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(
            f"{name}: no command, expected one of {', '.join(COMMANDS)}; a message that begins with / begins with //"
        )
    return command.run(session, rest.strip())


def _reset(session: ChatSession, rest: str) -> bool:
    _expect_nothing("/reset", rest)
    session.reset()
    say("[a new conversation]", err=True)
    return True


def _effort(session: ChatSession, rest: str) -> bool:
    for effort in get_args(Effort):
        if rest == effort:
            session.set_effort(effort)
            say(f"[effort {effort} from the next message on]", err=True)
            return True
    found = rest or f"nothing (it is {session.settings.effort})"
    raise UsageError(f"/effort: found {found}, expected low, medium or high")


def _save(session: ChatSession, rest: str) -> bool:
    if not rest:
        raise UsageError("/save: found no name, expected that of a file, such as /save chat.json")
    try:
        path = Path(rest).expanduser().absolute()
        check_new_file("/save", path, session.engine.runner.folder)
    except (RuntimeError, ValueError) as error:  # no such user; characters that no name has
        raise UsageError(f"/save {rest}: found no name of a file ({error})") from None
    content = json.dumps(session.to_json(), ensure_ascii=False, indent=1) + "\n"
    try:
        with replace_file(path) as written:
            written.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"/save {path}: cannot be written ({error.strerror or error})") from error
    say(f"[{len(session.messages)} messages saved to {path}]", err=True)
    return True


def _help(session: ChatSession, rest: str) -> bool:
    _expect_nothing("/help", rest)
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        say(f"{command.usage:{width}}  {command.help}", err=True)
    return True


def _exit(session: ChatSession, rest: str) -> bool:
    _expect_nothing("/exit", rest)
    return False


def _expect_nothing(name: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{name}: found {rest!r} after it, expected nothing")


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "/reset": Command("/reset", "begin a new conversation", _reset),
        "/effort": Command("/effort low|medium|high", "how long the model reasons", _effort),
        "/save": Command("/save FILE", "write the conversation to a file, as JSON", _save),
        "/help": Command("/help", "show the commands", _help),
        "/exit": Command("/exit", "end; so does Ctrl-D. Ctrl-C stops an answer", _exit),
    }
)

"""A conversation whose messages are the lines of standard input: answers and nothing else, for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ..errors import UsageError
from .chat_commands import message_of, run_command
from .chat_output import Style, TextPrinter
from .chat_session import Answer, ChatSession, message_json
from .tables import print_json


def answer_lines(session: ChatSession, style: Style, as_json: bool) -> None:
    """Answer each line in turn. Empty lines are left out. The first error ends it."""
    for number, line in enumerate(_lines(), 1):
        text = decoded(line, f"line {number} of standard input")
        message = message_of(text)
        if message is None:
            if not run_command(session, text):
                return
        elif message.strip():
            answer = session.ask(message)
            if as_json:
                for _ in answer:
                    pass
                print_json(_facts(answer))
            else:
                _print(answer, style)
            sys.stdout.flush()


def decoded(line: bytes, name: str) -> str:
    """A line without its end, in UTF-8 whatever the locale. Raises UsageError, which calls it `name`."""
    try:
        return line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: byte {error.start} is not UTF-8 ({error.reason}); give the text in UTF-8") from None


def _lines() -> Iterable[bytes]:
    return sys.stdin.buffer


def _print(answer: Answer, style: Style) -> None:
    printer = TextPrinter(style)
    for piece in answer:
        printer.piece(piece)
    printer.end(answer)


def _facts(answer: Answer) -> dict[str, object]:
    """One turn: the texts of the answer by what they are, and counts of tokens."""
    spoken = [message for message in answer.messages if not message.is_call]
    reasoning = [message.content for message in spoken if message.channel == "analysis"]
    return {
        "message": answer.asked[-1].content,
        "answer": "\n\n".join(message.content for message in spoken if message.channel != "analysis"),
        "reasoning": "\n\n".join(reasoning),
        "calls": [message_json(message) for message in answer.messages if message.is_call],
        "finish": answer.finish,
        "prompt_tokens": len(answer.handle.request.prompt),
        "reused_tokens": answer.handle.reused_tokens,
        "tokens": len(answer.handle.tokens),
    }

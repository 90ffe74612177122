"""What a model generates after `<|start|>assistant`: its messages, as their tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..text.text_stream import TextStream
from .headers import LONGEST, PLAIN, Header, HeaderTokens
from .messages import Message
from .vocabulary import HarmonyTokenizer


@dataclass(frozen=True)
class Piece:
    """A part of a message that a token makes certain.

    message       index of the message in the answer
    channel, recipient, content_type   those of the message, as in Message
    text          what its text is longer by; "" where a message only begins or ends
    begins, ends  whether the piece is the first of its message, and the last
    """

    message: int
    channel: str
    recipient: str | None
    content_type: str | None
    text: str
    begins: bool
    ends: bool


@dataclass
class _Open:
    """A message of the answer."""

    header: Header
    stream: TextStream
    parts: list[str] = field(default_factory=list)

    def message(self) -> Message:
        header = self.header
        return Message("assistant", "".join(self.parts), header.channel, header.recipient, header.content_type)


class AnswerParser:
    """Reads an answer token by token. It never raises for what a model generates, and gives each text once.

    What is malformed becomes text that the user sees, which is that of the channel final:

    - a message without a channel or with an unknown one, unless it has a recipient, whose channel is commentary then;
    - a header that is no header: its text, then the text of its body;
    - a header of more than 200 tokens (headers.LONGEST): its text, and everything up to the next message;
    - text before `<|channel|>`, which becomes a message of its own;
    - words after the channel where the message ends without `<|message|>`.

    Any other header without a body is dropped. Where a body holds `<|start|>` or `<|channel|>`, the next message
    begins. A later `<|channel|>` of a header replaces one before it. Other special tokens in a body are left out. Parts
    of a character are held back until the character is complete; bytes that are none become U+FFFD.
    """

    def __init__(self, tokenizer: HarmonyTokenizer) -> None:
        self._tokenizer = tokenizer
        self._header: HeaderTokens | None = HeaderTokens()  # None: a body is open, or nothing is
        self._open: _Open | None = None
        self._messages: list[_Open] = []
        self._finished = False

    @property
    def messages(self) -> list[Message]:
        """The messages so far. The text of the last one may be unfinished."""
        return [said.message() for said in self._messages]

    @property
    def finished(self) -> bool:
        """Whether the model has ended its answer, with `<|return|>` or `<|call|>`."""
        return self._finished

    def push(self, token: int) -> list[Piece]:
        """The next token. After the end of the answer, tokens are ignored."""
        control = self._tokenizer
        if self._finished:
            return []
        if token in (control.end, control.return_, control.call):
            pieces = self._end_message(by_token=True)
            self._finished = token != control.end
        elif token == control.start:
            pieces = self._end_message(by_token=True)
            self._header = HeaderTokens()
        elif self._header is None:
            pieces = self._of_body(token)
        else:
            pieces = self._of_header(self._header, token)
        return pieces

    def end(self) -> list[Piece]:
        """No token comes any more: the rest of what was held back."""
        return [] if self._finished else self._end_message(by_token=False)

    def _of_header(self, header: HeaderTokens, token: int) -> list[Piece]:
        control, pieces = self._tokenizer, []
        if token == control.message:
            read = header.read(control)
            return self._begin(PLAIN, header.tokens()) if read is None else self._begin(read)
        if token == control.channel:
            if not header.role_is_readable(control):
                pieces = self._whole(header.text(control))
                header = self._header = HeaderTokens()
            header.take(token, control)
        elif token == control.constrain or not control.text.leaves_out(token):
            header.take(token, control)
            if len(tokens := header.tokens()) > LONGEST:
                pieces = self._begin(PLAIN, tokens)
        return pieces

    def _of_body(self, token: int) -> list[Piece]:
        if token == self._tokenizer.channel:
            pieces = self._end_message(by_token=True)
            self._header = HeaderTokens(channel=[])
            return pieces
        said = self._open
        if said is None:
            # Text between messages: `<|start|>` is missing.
            self._header = HeaderTokens()
            return self._of_header(self._header, token)
        return self._text(said, said.stream.push(token))

    def _begin(self, header: Header, tokens: Sequence[int] = ()) -> list[Piece]:
        """A body begins, with tokens that were taken for its header."""
        self._open, self._header = _Open(header, TextStream(self._tokenizer.text)), None
        self._messages.append(self._open)
        text = "".join([self._open.stream.push(token) for token in tokens])
        self._open.parts.append(text)
        return [self._piece(self._open, text, begins=True)]

    def _whole(self, text: str) -> list[Piece]:
        """A message of text that has no header."""
        said = _Open(PLAIN, TextStream(self._tokenizer.text), [text])
        self._messages.append(said)
        return [self._piece(said, text, begins=True, ends=True)]

    def _end_message(self, by_token: bool) -> list[Piece]:
        """The message that is being generated ends, with the token for it or where the answer is cut off."""
        said, header = self._open, self._header
        self._open = self._header = None
        if said is not None:
            rest = said.stream.end()
            said.parts.append(rest)
            return [self._piece(said, rest, ends=True)]
        text = "" if header is None else header.unread(self._tokenizer, cut_off=not by_token)
        return self._whole(text) if text else []

    def _text(self, said: _Open, text: str) -> list[Piece]:
        if not text:
            return []
        said.parts.append(text)
        return [self._piece(said, text)]

    def _piece(self, said: _Open, text: str, begins: bool = False, ends: bool = False) -> Piece:
        header = said.header
        index = len(self._messages) - 1
        return Piece(index, header.channel, header.recipient, header.content_type, text, begins, ends)

"""Headers of an answer's messages: the tokens between `<|start|>` and `<|message|>`, and what they say."""

from __future__ import annotations

from dataclasses import dataclass, field

from .messages import CHANNELS, CONSTRAIN
from .vocabulary import HarmonyTokenizer

LONGEST = 200  # tokens; a header has about ten, and at most 128 more for the name of a function

_ROLE = "assistant"
_TO = "to="


@dataclass(frozen=True)
class Header:
    """What a header says: who the message is for, and what kind of text it is."""

    channel: str
    recipient: str | None = None
    content_type: str | None = None


PLAIN = Header("final")  # of text that has no header


@dataclass
class HeaderTokens:
    """The tokens of a header so far, by its sections: the role, the channel, and the kind of content."""

    role: list[int] = field(default_factory=list)
    channel: list[int] | None = None
    constrain: list[int] | None = None

    def take(self, token: int, control: HarmonyTokenizer) -> None:
        """The next token: text, or the control token that begins a section. A channel replaces one before it."""
        if token == control.channel:
            self.channel, self.constrain = [], None
            return
        if token == control.constrain:
            self.constrain = []
            return
        for section in (self.constrain, self.channel, self.role):
            if section is not None:
                section.append(token)
                return

    def text(self, tokenizer: HarmonyTokenizer) -> str:
        """Its text, without control tokens."""
        return tokenizer.text.decode(self.tokens())

    def tokens(self) -> list[int]:
        """Its tokens, without control tokens."""
        return [*self.role, *(self.channel or ()), *(self.constrain or ())]

    def role_is_readable(self, tokenizer: HarmonyTokenizer) -> bool:
        """Whether the section before the channel is that of a header."""
        words = _words_after_role(tokenizer.text.decode(self.role))
        return not words or words[0].startswith(_TO)

    def unread(self, tokenizer: HarmonyTokenizer, cut_off: bool) -> str:
        """Text that stands where a header should be, of a message that never got `<|message|>`: the model forgot this
        token, or all of the format. `cut_off`: the rest may be missing."""
        words = _words_after_role(tokenizer.text.decode(self.role))
        if words and not words[0].startswith(_TO):
            begins = cut_off and len(words) == 1 and (_ROLE.startswith(words[0]) or _TO.startswith(words[0]))
            return "" if begins else self.text(tokenizer)
        said = [] if self.channel is None or cut_off else tokenizer.text.decode(self.channel).split(maxsplit=1)
        return said[1] if len(said) == 2 and not said[1].startswith(_TO) else ""

    def read(self, tokenizer: HarmonyTokenizer) -> Header | None:
        """What a whole header says; None where it is no header.

        The recipient stands in the section of the role or of the channel. Words without `to=` are read as by
        openai-harmony: the last one is the content type, and the one before it the recipient; a single one is the
        recipient. In the channel final, where nothing is called, a single one is the content type.
        """
        words = _words_after_role(tokenizer.text.decode(self.role))
        if not self.role_is_readable(tokenizer):
            return None
        channel = None
        if self.channel is not None:
            channel, *others = tokenizer.text.decode(self.channel).split() or [""]
            words += others
        if channel not in CHANNELS:
            channel = None
        content_type = None
        if self.constrain is not None:
            content_type = CONSTRAIN + "".join(tokenizer.text.decode(self.constrain).split())
        elif words and not words[-1].startswith(_TO) and (len(words) > 1 or channel == "final"):
            content_type = words.pop()
        if len(words) > 1:
            return None
        recipient = words[0].removeprefix(_TO) if words else None
        # A message that says no channel, or none that there is, is for the user, but a call is not.
        return Header(channel or ("commentary" if recipient else "final"), recipient or None, content_type)


def _words_after_role(text: str) -> list[str]:
    words = text.split()
    return words[1:] if words[:1] == [_ROLE] else words

"""The grammar of a message's header, from `<|start|>assistant` to `<|message|>`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ..errors import UsageError
from ..harmony.messages import FUNCTIONS
from ..harmony.vocabulary import HarmonyTokenizer
from ..values import shown
from .grammars import NO_FORCING

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def check_name(name: str) -> None:
    """Raises UsageError for a tool that a header cannot name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"tools: found the name {shown(name)}, expected 1 to 128 letters, digits, dots, hyphens and underscores"
        )


def header(control: HarmonyTokenizer, final: bool, json_final: bool, tools: Sequence[str]) -> str:
    """The grammar of the headers that an answer can have, in the library's notation.

    final       whether there may be a final message
    json_final  whether that is JSON, which its header can say
    tools       the names of those that can be called

    Both orders in which gpt-oss writes the header of a call are allowed.
    """
    start, message, channel = (f"<[{token}]>" for token in (control.start, control.message, control.channel))
    constrain = f'" "? <[{control.constrain}]> "json"'
    kinds = [f'{channel} ("analysis" | "commentary")']
    if final:
        kinds.append(f'{channel} "final"' + (f" ({constrain})?" if json_final else ""))
    if tools:
        names = " | ".join(json.dumps(name) for name in tools)
        kinds.append(
            f'({channel} "commentary to={FUNCTIONS}." ({names}) | " to={FUNCTIONS}." ({names}) {channel} "commentary")'
            f' ({constrain} | " json")?'
        )
    return f'{NO_FORCING}start: {start} "assistant" ({" | ".join(kinds)}) {message}'

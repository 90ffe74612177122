"""Structures: the constraints of answers, for the tokens of one model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..harmony.messages import FUNCTIONS
from ..harmony.vocabulary import HarmonyTokenizer
from ..values import shown
from .constraint import AnswerGrammar, Constraint
from .formats import CallableTool, Format, JsonObject, JsonSchema
from .grammars import Grammar, Grammars
from .headers import check_name, header
from .json_schema import arguments, document
from .masks import Masks
from .token_bytes import TokenBytes

_ANY_OBJECT = JsonSchema({"type": "object"})


@dataclass(frozen=True)
class _Prepared:
    grammars: Grammars
    masks: Masks


class Structures:
    """Makes constraints. Any thread may call it.

    `vocab_size` is the model's, which has more ids than its tokenizer has tokens.
    """

    def __init__(self, control: HarmonyTokenizer, vocab_size: int) -> None:
        self._control, self._vocab_size = control, vocab_size
        self._lock = threading.Lock()
        self._prepared: _Prepared | None = None

    def prepare(self) -> None:
        """Do now what the first constraint would wait for: about two seconds with gpt-oss's tokens, during which other
        Python threads hardly run.

        Raises UsageError where llguidance is not installed, and for a tokenizer that is not byte-level.
        """
        self._prepare()

    def of_answer(
        self, final: Format | None, tools: Sequence[CallableTool] = (), choice: str = "auto"
    ) -> Constraint | None:
        """The constraint of one answer; each answer needs its own. None where nothing has to be enforced.

        final   the format of the final message; None: free text
        tools   those that can be called
        choice  "auto": the answer is a final message or a call; "none": a final message; "required": a call; any other
                text: a call of the tool of this name

        Arguments of tools that are not strict are any JSON object. With "auto", without a format and without a strict
        tool, nothing is enforced: a mask makes steps slower, and gpt-oss writes JSON objects without one.

        Raises UsageError for a tool that is not there, for two tools of a name, and naming what a schema has that
        cannot be enforced.
        """
        callable_ = _callable(tools, choice)
        if final is None and (not tools or (choice == "auto" and not any(tool.strict for tool in tools))):
            return None
        prepared = self._prepare()
        return Constraint(self._grammar(prepared, final, callable_, with_final=choice in ("auto", "none")))

    def _grammar(
        self, prepared: _Prepared, final: Format | None, tools: Sequence[CallableTool], with_final: bool
    ) -> AnswerGrammar:
        control, grammars = self._control, prepared.grammars
        body: Grammar | None = None
        if final is not None and with_final:
            schema = _ANY_OBJECT if isinstance(final, JsonObject) else final
            body = document(grammars, schema, control.return_)
        calls = {
            f"{FUNCTIONS}.{tool.name}": document(
                grammars, arguments(tool) if tool.strict else _ANY_OBJECT, control.call
            )
            for tool in tools
        }
        headers = grammars.compiled(header(control, with_final, body is not None, [tool.name for tool in tools]))
        return AnswerGrammar(control, prepared.masks, headers, body, calls)

    def _prepare(self) -> _Prepared:
        with self._lock:
            if self._prepared is None:
                tokens = TokenBytes.of(self._control.tokenizer, self._vocab_size)
                self._prepared = _Prepared(Grammars(self._control, tokens), Masks(self._control, tokens))
            return self._prepared


def _callable(tools: Sequence[CallableTool], choice: str) -> Sequence[CallableTool]:
    """The tools that a choice lets the model call."""
    names: dict[str, CallableTool] = {}
    for tool in tools:
        check_name(tool.name)
        if tool.name in names:
            raise UsageError(f"tools: found {shown(tool.name)} a second time, expected a name for each tool")
        names[tool.name] = tool
    if choice == "none":
        return ()
    if choice == "auto":
        return tools
    if choice == "required":
        if not tools:
            raise UsageError('tool_choice: found "required" without tools, expected at least one tool')
        return tools
    if choice not in names:
        raise UsageError(f"tool_choice: found {shown(choice)}, expected one of {', '.join(names) or 'no tools'}")
    return (names[choice],)

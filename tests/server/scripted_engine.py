"""An engine that gives the tokens of a text that a test writes, and a tokenizer of 600 tokens for it."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gptoss_export.errors import QueueFullError
from gptoss_export.harmony.vocabulary import CONTROL_TOKENS, HarmonyTokenizer
from gptoss_export.runtime.engine import EngineStats
from gptoss_export.runtime.generation import Token
from gptoss_export.runtime.request_handle import RequestHandle
from gptoss_export.runtime.running_sequence import Request
from gptoss_export.runtime.sampling_params import SamplingParams

VOCABULARY = 600
CONTEXT = 4000
PAGE = 64  # tokens
_SPECIAL = re.compile(f"({'|'.join(map(re.escape, CONTROL_TOKENS.values()))})")
_MERGES = [("h", "e"), ("l", "l"), ("i", "n"), ("Ġ", "w"), ("Ġw", "o"), ("o", "r"), ("t", "he"), ("a", "n"), ("e", "r")]


def harmony_tokenizer() -> HarmonyTokenizer:
    """Bytes, some longer tokens, and the control tokens from 500 on."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in _MERGES)]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([f"<filler {index}>" for index in range(len(symbols), 500)])
    tokenizer.add_special_tokens(list(CONTROL_TOKENS.values()))
    return HarmonyTokenizer.of(tokenizer, VOCABULARY)


def tokens_of(tokenizer: HarmonyTokenizer, text: str) -> list[int]:
    """Tokens of a text in which the names of control tokens mean them."""
    ids: list[int] = []
    for part in _SPECIAL.split(text):
        special = tokenizer.tokenizer.token_to_id(part) if _SPECIAL.fullmatch(part) else None
        ids += tokenizer.encode(part) if special is None else [special]
    return ids


def shown(tokenizer: HarmonyTokenizer, tokens: Sequence[int]) -> str:
    """Tokens as text with the names of control tokens."""
    text: str = tokenizer.tokenizer.decode(list(tokens), skip_special_tokens=False)
    return text


def said(prompt: str) -> str:
    """What the user said last, of a prompt that is `shown`."""
    return prompt.rpartition("<|start|>user<|message|>")[2].partition("<|end|>")[0]


def answer(final: str, analysis: str = "") -> str:
    """An answer in the chat format."""
    thought = f"<|channel|>analysis<|message|>{analysis}<|end|><|start|>assistant" if analysis else ""
    return f"{thought}<|channel|>final<|message|>{final}<|return|>"


def call(name: str, arguments: str, analysis: str = "") -> str:
    """A call of a function."""
    thought = f"<|channel|>analysis<|message|>{analysis}<|end|><|start|>assistant" if analysis else ""
    return f"{thought}<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"


def echo(prompt: str) -> str:
    """Says what the user said, after reasoning about it."""
    return answer(f"You said: {said(prompt)}", f"The user said: {said(prompt)}")


@dataclass(eq=False)
class _Running:
    handle: RequestHandle
    script: Iterator[int]
    reused: int
    tokens: list[int] = field(default_factory=list)


class ScriptedEngine:
    """Gives each request the tokens of `script`, which gets the prompt as text. Where a request allows some tokens
    alone, and the script's is not among them, it draws one of those that are allowed, by a hash of the answer so far.

    slots         answers that run at a time
    step_seconds  how long a step takes, which gives each running answer a token
    reused        tokens of each request's prompt that are said to be in the cache, by the request's number; none else
    held          no step is taken while this is set
    """

    driven = True

    def __init__(
        self,
        script: Callable[[str], str] = echo,
        slots: int = 300,
        step_seconds: float = 0.0,
        tokenizer: HarmonyTokenizer | None = None,
        most_waiting: int = 10_000,
    ) -> None:
        self.tokenizer = tokenizer or harmony_tokenizer()
        self.script, self.slots, self.step_seconds, self.most_waiting = script, slots, step_seconds, most_waiting
        self.requests: list[Request] = []
        self.prompts: list[Sequence[int]] = []  # of the requests, as they were given
        self.adapters: list[str | None] = []
        self.reused: dict[int, int] = {}
        self.held = threading.Event()
        self.fails: Exception | None = None  # of all that run, in the next step
        self.steps = 0
        self._changed = threading.Condition()
        self._waiting: list[_Running] = []
        self._running: list[_Running] = []
        self._cancelled: set[RequestHandle] = set()
        self._ended = self._tokens = 0
        self._closed = False
        self._thread = threading.Thread(target=self._drive, daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        sampling: SamplingParams | None = None,
        stop_tokens: Sequence[int] | None = None,
        keep_logits: bool = False,
        on_token: Callable[[Token], object] | None = None,
        allowed: Callable[[Sequence[int]], bytes] | None = None,
        adapter: str | None = None,
    ) -> RequestHandle:
        """As Engine.submit."""
        request = Request(list(prompt), max_new_tokens, sampling or SamplingParams(), frozenset(stop_tokens or ()))
        script = iter(tokens_of(self.tokenizer, self.script(shown(self.tokenizer, prompt))))
        if allowed is not None:
            script = self._allowed(script, allowed)
        with self._changed:
            reused = self.reused.get(len(self.requests), 0)
            running = _Running(RequestHandle(self, request, on_token), script, reused)
            if len(self._waiting) >= self.most_waiting:
                raise QueueFullError("too many")
            self.requests.append(request)
            self.prompts.append(prompt)
            self.adapters.append(adapter)
            self._waiting.append(running)
            self._changed.notify_all()
        return running.handle

    def cancel(self, handle: RequestHandle) -> None:
        with self._changed:
            self._cancelled.add(handle)
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        with self._changed:
            held = sum(-(-(len(each.handle.request.prompt) + len(each.tokens)) // PAGE) for each in self._running)
            counts = len(self._running), len(self._waiting)
            return EngineStats(*counts, self._ended, self._tokens, 0, 0, pages=10_000, held_pages=held)

    def start(self) -> None:
        """It runs."""

    def step(self) -> bool:
        raise AssertionError("the engine has a thread")

    def close(self) -> None:
        """End all as cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for each in [*self._waiting, *self._running]:
            each.handle.end("cancelled", None)

    def wait_until(self, condition: Callable[[EngineStats], bool], seconds: float = 10.0) -> None:
        """Until the engine's figures are as a test wants them. Raises AssertionError after some seconds."""
        end = time.monotonic() + seconds
        while not condition(self.stats()):
            assert time.monotonic() < end, self.stats()
            time.sleep(0.002)

    def _drive(self) -> None:
        while True:
            with self._changed:
                idle = not (self._waiting or self._running or self._cancelled)
                if idle or (self.held.is_set() and not self._cancelled):
                    self._changed.wait(0.01)
                if self._closed:
                    return
                self._cancel()
                while self._waiting and len(self._running) < self.slots and not self.held.is_set():
                    self._running.append(self._waiting.pop(0))
                running = list(self._running) if not self.held.is_set() else []
            if running:
                time.sleep(self.step_seconds)
                self._step(running)

    def _cancel(self) -> None:
        for places in (self._waiting, self._running):
            for each in [each for each in places if each.handle in self._cancelled]:
                places.remove(each)
                self._ended += 1
                each.handle.end("cancelled", None)
        self._cancelled.clear()

    def _step(self, running: list[_Running]) -> None:
        self.steps += 1
        failure, self.fails = self.fails, None
        for each in running:
            request = each.handle.request
            finish: str | None = None
            try:
                if failure is not None:
                    raise failure
                token = next(each.script, None)
                if token is None:
                    finish = "context"
                else:
                    each.tokens.append(token)
                    self._tokens += 1
                    tops = [((token + at) % VOCABULARY, -0.5 - at) for at in range(request.sampling.top_logprobs)]
                    each.handle.put(Token(0, token, -0.5, None, tops), each.reused)
                    if token in request.stop_tokens:
                        finish = "stop"
                    elif len(each.tokens) == request.max_new_tokens:
                        finish = "length"
                error = None
            except Exception as problem:
                finish, error = "error", problem
            if finish is not None:
                with self._changed:
                    if each in self._running:
                        self._running.remove(each)
                        self._ended += 1
                each.handle.end(finish, error)

    def _allowed(self, script: Iterator[int], allowed: Callable[[Sequence[int]], bytes]) -> Iterator[int]:
        tokens: list[int] = []
        for token in script:
            mask = allowed(tokens)
            if not mask[token // 8] >> token % 8 & 1:
                break
            tokens.append(token)
            yield token
        while True:
            mask = allowed(tokens)
            good = [token for token in range(VOCABULARY) if mask[token // 8] >> token % 8 & 1]
            stops = [token for token in good if token in self.tokenizer.stop_tokens]
            digest = hashlib.sha256(repr(tokens).encode()).digest()
            token = stops[0] if stops else good[int.from_bytes(digest[:4], "little") % len(good)]
            tokens.append(token)
            yield token

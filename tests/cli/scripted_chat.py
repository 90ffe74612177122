"""A model whose answers are written here, behind a real engine. As a program, the command line with that model.

The answer depends on the last message: see `answer`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from byte_tokenizers import TINY_SPECIAL, TINY_VOCABULARY, byte_tokenizer
from executor_without_tensors import ExecutorWithoutTensors, SlotOutput

from gptoss_export.artifact.programs import Sizes
from gptoss_export.errors import RunError
from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.model.sampling_state import Choice
from gptoss_export.runtime.executor import (
    ChunkOutput,
    Outputs,
    PagedMemory,
    PageLayout,
    Part,
    PendingTokens,
    Prompt,
    Sampling,
    TableEntry,
)
from gptoss_export.runtime.runner import Runner
from gptoss_export.runtime.sampling_params import SamplingParams

CONTEXT = 800
_FINAL = "<|channel|>final<|message|>"
_ANSWERS = {
    "nothing": "<|return|>",
    "call": '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>',
    "escape": f"{_FINAL}\x1b[31mred\x1b]0;title\x07<|return|>",
    "unicode": f"{_FINAL}日本 é 😀<|return|>",
    "lines": f"{_FINAL}one\ntwo\n<|return|>",
    "preamble": f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{_FINAL}Done.<|return|>",
    **{
        f"to {who}": f"<|channel|>commentary to={who}<|message|>Hi there.<|end|><|start|>assistant{_FINAL}<|return|>"
        for who in ("user", "all", "assistant")
    },
    "endless": f"{_FINAL}" + "x" * 3 * CONTEXT,
    "slow": f"<|channel|>analysis<|message|>Slowly.<|end|><|start|>assistant{_FINAL}" + "go on " * CONTEXT,
    "slow start": f"<|channel|>analysis<|message|>{'Hm. ' * CONTEXT}",
}
PAUSE = 0.02  # seconds, before each token of a slow answer
FAILS = "fail"


def answer(messages: Sequence[str]) -> str:
    """What the model generates after `<|start|>assistant`. messages: all of the user."""
    last = messages[-1]
    default = (
        f"<|channel|>analysis<|message|>Message {len(messages)}.<|end|>"
        f"<|start|>assistant{_FINAL}You said {last}.<|return|>"
    )
    return _ANSWERS.get(last, default)


def special_ids(tokenizer: HarmonyTokenizer, text: str) -> list[int]:
    """The tokens of a text in which names of special tokens are these tokens."""
    found: list[int] = []
    for index, part in enumerate(text.replace("<|", "\0<|").replace("|>", "|>\0").split("\0")):
        found += [TINY_SPECIAL[part]] if index % 2 else tokenizer.encode(part)
    return found


@dataclass
class Pending(PendingTokens):
    tokens: dict[int, int]

    def wait(self) -> tuple[Mapping[int, int], Mapping[int, float], None]:
        return self.tokens, dict.fromkeys(self.tokens, -1.0), None


class NoMemory(PagedMemory):
    """Pages that hold nothing: the executor knows its sequences. So the engine finds what a prompt shares."""

    layout = PageLayout(page=4, pages=CONTEXT, full=True, window=6, chunk=64)

    def set_pages(self, entries: Sequence[TableEntry]) -> None:
        pass

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        pass


class ScriptedExecutor(ExecutorWithoutTensors):
    """The token after a sequence is that of the script."""

    def __init__(self, slots: int) -> None:
        self.tokenizer = HarmonyTokenizer.of(byte_tokenizer(TINY_SPECIAL), TINY_VOCABULARY)
        self.prompts: list[str] = []  # text of each prompt that was answered
        self.params = [SamplingParams()] * slots
        self.paged_memory = NoMemory()
        self._sequences: list[list[int]] = [[]] * slots
        self._chosen: dict[int, int] = {}
        self._latest: list[int] = []

    def chunk_of(self, prompt: Prompt) -> Part:
        return prompt.first(self.paged_memory.layout.chunk)

    def prefill(self, part: Part, outputs: Outputs) -> Iterator[ChunkOutput]:
        return iter([SlotOutput(part.slot)] if part.ends else [])

    def set_sampling(self, given: Mapping[int, Sampling]) -> None:
        for slot, sampling in given.items():
            self.params[slot] = sampling.params
            self._sequences[slot] = [*sampling.prompt, *sampling.tokens]

    def allow(self, masks: Mapping[int, bytes]) -> None:
        raise NotImplementedError

    def keep_output(self, slot: int, output: ChunkOutput) -> None:
        pass

    def choose_first(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        for slot in slots:
            assert len(self._sequences[slot]) == lengths[slot]
            self._chosen[slot] = self._scripted(self._sequences[slot])
        self._latest = list(slots)

    def step(self, slots: Sequence[int], lengths: Sequence[int], choice: Choice) -> None:
        for slot in slots:
            self._sequences[slot].append(self._chosen[slot])
        self.choose_first(slots, [length + 1 for length in lengths], choice)

    def pending_tokens(self, keep_logits: bool) -> PendingTokens:
        return Pending({slot: self._chosen[slot] for slot in self._latest})

    def _scripted(self, tokens: list[int]) -> int:
        starts = [at for at, token in enumerate(tokens) if token == self.tokenizer.start]
        user, assistant = self.tokenizer.encode("user"), self.tokenizer.encode("assistant")
        asked = max(at for at in starts if tokens[at + 1 : at + 1 + len(user)] == user)
        begin = min(at for at in starts if at > asked) + 1 + len(assistant)  # of the answer
        text = self.tokenizer.tokenizer.decode(tokens[:begin], skip_special_tokens=False)
        users = [part.split("<|end|>", 1)[0] for part in text.split("<|start|>user<|message|>")[1:]]
        if users[-1] == FAILS:
            raise RunError("the model fails")
        if users[-1].startswith("slow"):
            time.sleep(PAUSE)
        if begin == len(tokens):
            self.prompts.append(text)
        return special_ids(self.tokenizer, answer(users))[len(tokens) - begin]


def scripted_runner(folder: Path) -> tuple[Runner, ScriptedExecutor]:
    """A runner over such an executor, as loaded from a folder, into which the tokenizer is written."""
    executor = ScriptedExecutor(slots=2)
    executor.tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    manifest: Any = SimpleNamespace(
        sizes=Sizes((2,), CONTEXT, (64,)),
        model=SimpleNamespace(vocab_size=TINY_VOCABULARY),
        stop_tokens=(TINY_SPECIAL["<|return|>"],),
        files={"tokenizer.json": None},
    )
    return Runner(manifest, folder, executor, {}), executor


if __name__ == "__main__":
    from gptoss_export import loading
    from gptoss_export.cli import main

    folder = Path(sys.argv.pop(1))
    loading.load = lambda *_, **__: scripted_runner(folder)[0]
    main()

"""Structured output of a compiled artifact with random weights: its answers are documents, whatever it would say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from structure_answers import messages_of, refused
from structure_schemas import loads, obeys

from gptoss_export import Engine, SamplingParams, load
from gptoss_export.errors import RunError
from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.runtime.runner import Runner
from gptoss_export.structure.formats import CallableTool, JsonSchema
from gptoss_export.structure.structures import Structures

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "kind": {"enum": ["circle", "square", None]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 99}, "maxItems": 3},
        "seen": {"type": "boolean"},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
LONG = {"type": "string", "pattern": "^[a-z ]{110,120}$"}


@pytest.fixture(scope="module")
def control(loaded: Runner) -> HarmonyTokenizer:
    return HarmonyTokenizer.open(loaded.folder, loaded.manifest)


@pytest.fixture(scope="module")
def structures(control: HarmonyTokenizer, loaded: Runner) -> Structures:
    return Structures(control, loaded.manifest.model.vocab_size)


def prompt_of(control: HarmonyTokenizer, text: str) -> list[int]:
    said = [control.start, *control.encode("user"), control.message, *control.encode(text), control.end]
    return [*said, control.start, *control.encode("assistant")]


def drawn(control: HarmonyTokenizer, seed: int) -> SamplingParams:
    """Free text ends at once: the weights are random, and a message would have hundreds of tokens."""
    return SamplingParams(1.0, seed=seed, logit_bias={control.end: 100.0})


def document(control: HarmonyTokenizer, tokens: Sequence[int]) -> Any:
    return loads(messages_of(control, tokens)[-1].content)


def test_answers_obey_their_formats_beside_free_ones(
    runner: Runner, control: HarmonyTokenizer, structures: Structures
) -> None:
    """Formats, calls and free answers, three at a time. Free answers are what they are alone."""
    prompt, stops = prompt_of(control, "Draw"), control.stop_tokens
    free = runner.generate(prompt, 30, stop_tokens=()).tokens
    tool = CallableTool("draw", SCHEMA, strict=True)
    with Engine(runner) as engine:
        finals = [
            engine.submit(prompt, 1500, drawn(control, seed), stops, allowed=structures.of_answer(JsonSchema(SCHEMA)))
            for seed in range(6)
        ]
        plain = [engine.submit(prompt, 30, stop_tokens=()) for _ in range(3)]
        calls = [
            engine.submit(prompt, 1500, drawn(control, seed), stops, allowed=structures.of_answer(None, [tool], "draw"))
            for seed in range(6, 10)
        ]
        results = [handle.result() for handle in (*finals, *calls)]
        assert [handle.result().tokens for handle in plain] == 3 * [free]
    assert all(result.finish == "stop" for result in results)
    assert [result.tokens[-1] for result in results] == 6 * [control.return_] + 4 * [control.call]
    documents = [document(control, result.tokens) for result in results]
    assert all(obeys(SCHEMA, each) for each in documents)
    assert len({str(each) for each in documents}) > 5
    assert messages_of(control, results[-1].tokens)[-1].recipient == "functions.draw"


def test_answers_that_are_set_back_go_on_with_their_documents(
    artifact: Path, control: HarmonyTokenizer, structures: Structures
) -> None:
    """Pages for little more than one sequence: the others lose theirs and are prefilled again, with their tokens."""
    small = load(artifact, kv_memory=11 * 65_536)
    prompt, engine = prompt_of(control, "Write"), Engine(small)
    handles = [
        engine.submit(
            prompt, 3000, drawn(control, seed), control.stop_tokens, allowed=structures.of_answer(JsonSchema(LONG))
        )
        for seed in range(4)
    ]
    results = [handle.result() for handle in handles]
    assert engine.stats().set_back > 0
    for result in results:
        assert result.finish == "stop" and obeys(LONG, document(control, result.tokens))
        assert refused(structures.of_answer(JsonSchema(LONG)), result.tokens) is None
    engine.close()


def test_an_answer_whose_mask_fails_ends_alone(
    runner: Runner, control: HarmonyTokenizer, structures: Structures
) -> None:
    prompt, params = prompt_of(control, "Draw"), drawn(control, 3)
    broken = structures.of_answer(JsonSchema(SCHEMA))

    def allowed(tokens: Sequence[int]) -> bytes:
        return broken([*tokens, control.start, control.start] if len(tokens) > 4 else tokens)

    with Engine(runner) as engine:
        good, bad = (
            engine.submit(prompt, 1500, params, control.stop_tokens, allowed=each)
            for each in (structures.of_answer(JsonSchema(SCHEMA)), allowed)
        )
        assert obeys(SCHEMA, document(control, good.result().tokens))
        with pytest.raises(RunError, match=f"token {control.start} at 5 of the answer"):
            bad.result()
    assert bad.finish == "error" and len(bad.tokens) == 5

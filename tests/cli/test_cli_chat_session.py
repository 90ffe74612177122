"""A conversation with an engine: what each prompt holds, what stays of stopped answers, and what has no room."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_chat import CONTEXT, ScriptedExecutor, scripted_runner

from gptoss_export import Engine, SamplingParams
from gptoss_export.cli.chat_session import Answer, ChatSession, ChatSettings
from gptoss_export.errors import RunError, UsageError
from gptoss_export.harmony.messages import Message

SETTINGS = ChatSettings(SamplingParams(), instructions="Be short.", date="2026-01-31")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[ChatSession, ScriptedExecutor]]:
    runner, executor = scripted_runner(tmp_path)
    with Engine(runner) as engine:
        yield ChatSession(engine, executor.tokenizer, SETTINGS), executor


@pytest.fixture
def session(made: tuple[ChatSession, ScriptedExecutor]) -> ChatSession:
    return made[0]


def asked(session: ChatSession, text: str) -> Answer:
    answer = session.ask(text)
    list(answer)
    return answer


def test_turns_follow_each_other(made: tuple[ChatSession, ScriptedExecutor]) -> None:
    """The prompt of each turn holds those before, without their reasoning."""
    session, executor = made
    assert asked(session, "Hello").finish == "stop"
    answer = asked(session, "Again")
    assert answer.messages == [
        Message("assistant", "Message 2.", "analysis"),
        Message("assistant", "You said Again.", "final"),
    ]
    assert [message.content for message in session.messages] == [
        "Hello",
        "Message 1.",
        "You said Hello.",
        "Again",
        "Message 2.",
        "You said Again.",
    ]
    first, second = executor.prompts
    assert "Current date: 2026-01-31\n\nReasoning: medium\n" in first
    assert (
        "<|start|>developer<|message|># Instructions\n\nBe short.<|end|><|start|>user<|message|>Hello<|end|>" in first
    )
    assert second == (
        first.removesuffix("<|start|>assistant")
        + "<|start|>assistant<|channel|>final<|message|>You said Hello.<|end|>"
        + "<|start|>user<|message|>Again<|end|><|start|>assistant"
    )


def test_the_next_turn_computes_what_is_new(made: tuple[ChatSession, ScriptedExecutor]) -> None:
    session, executor = made
    first = asked(session, "Hello")
    prompt = len(first.handle.request.prompt)
    asked(session, "Again")
    page = executor.paged_memory.layout.page
    assert session.engine.stats().reused_tokens >= prompt - page - len("<|start|>assistant")


def test_a_new_conversation_and_an_effort(made: tuple[ChatSession, ScriptedExecutor]) -> None:
    session, executor = made
    asked(session, "Hello")
    session.reset()
    session.set_effort("high")
    asked(session, "Again")
    assert "Hello" not in executor.prompts[1]
    assert "Reasoning: high" in executor.prompts[1]
    assert len(session.messages) == 3


def test_a_stopped_answer_stays_as_far_as_it_came(made: tuple[ChatSession, ScriptedExecutor]) -> None:
    session, executor = made
    answer = session.ask("slow")
    for piece in answer:
        if piece.channel == "final" and piece.text == "g":
            answer.cancel()
    assert answer.finish == "cancelled"
    user, reasoning, final = session.messages
    assert (user.content, reasoning.content) == ("slow", "Slowly.")
    assert "go on go on go on ".startswith(final.content) and len(final.content) < 18
    asked(session, "Hello")
    assert f"<|channel|>final<|message|>{final.content}<|end|><|start|>user<|message|>Hello" in executor.prompts[1]


def test_stopped_reasoning_is_in_the_next_prompt(made: tuple[ChatSession, ScriptedExecutor]) -> None:
    session, executor = made
    answer = session.ask("slow start")
    for piece in answer:
        if piece.text:
            answer.cancel()
    (_, reasoning) = session.messages
    assert reasoning.channel == "analysis" and reasoning.content.startswith("H")
    asked(session, "Hello")
    assert f"<|channel|>analysis<|message|>{reasoning.content}<|end|>" in executor.prompts[1]


def test_a_question_that_is_taken_back_at_once_was_not_asked(session: ChatSession) -> None:
    answer = session.ask("slow")
    answer.cancel()
    list(answer)
    assert answer.finish == "cancelled"
    assert session.messages == ()


def test_an_answer_of_nothing(session: ChatSession) -> None:
    assert asked(session, "nothing").messages == []
    assert [message.content for message in session.messages] == ["nothing"]


def test_a_call_ends_the_answer(session: ChatSession) -> None:
    """Its token is not among the artifact's stop tokens here."""
    answer = asked(session, "call")
    assert answer.finish == "stop"
    assert answer.messages == [Message("assistant", '{"a":1}', "commentary", "functions.f", "<|constrain|>json")]


def test_most_new_tokens(session: ChatSession) -> None:
    session.settings = replace(session.settings, max_new_tokens=30)
    answer = asked(session, "endless")
    assert (answer.finish, len(answer.handle.tokens)) == ("length", 30)
    assert session.messages[-1] == Message("assistant", "x" * (30 - len("cfinalm")), "final")


def test_an_answer_fills_the_context(session: ChatSession) -> None:
    answer = asked(session, "endless")
    prompt = len(answer.handle.request.prompt)
    assert answer.finish == "context"
    assert prompt + len(answer.handle.tokens) == CONTEXT + 1  # the last token is not in the cache
    before = session.messages
    with pytest.raises(RunError) as error:
        session.ask("more")
    assert f"expected fewer than the {CONTEXT} of the context (--max-context of the build); /reset begins" in str(
        error.value
    )
    assert str(error.value).startswith("the conversation: found ")
    assert session.messages == before
    session.reset()
    assert asked(session, "Hello").finish == "stop"


def test_the_largest_message_and_one_token_more(session: ChatSession) -> None:
    """Both numbers are in the error, and it says what to do."""
    empty = len(session._prompt((Message("user", ""),)))
    most = CONTEXT - 1 - empty
    with pytest.raises(RunError) as error:
        session.ask("y" * (most + 1))
    assert str(error.value) == (
        f"the message: found {CONTEXT} tokens with the instructions, expected fewer than the {CONTEXT} of the context "
        "(--max-context of the build); shorten it"
    )
    assert session.messages == ()
    answer = asked(session, "y" * most)
    assert (answer.finish, len(answer.handle.tokens)) == ("context", 2)


def test_what_fails_leaves_the_conversation_alone(session: ChatSession) -> None:
    asked(session, "Hello")
    before = session.messages
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        session.ask("a\udcff")
    with pytest.raises(RunError, match="the model fails"):
        asked(session, "fail")
    assert session.messages == before
    assert asked(session, "Again").finish == "stop"


def test_a_conversation_as_json(session: ChatSession, tmp_path: Path) -> None:
    asked(session, "call")
    assert json.loads(json.dumps(session.to_json())) == {
        "artifact": str(tmp_path),
        "effort": "medium",
        "instructions": "Be short.",
        "date": "2026-01-31",
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "messages": [
            {"role": "user", "content": "call"},
            {
                "role": "assistant",
                "channel": "commentary",
                "recipient": "functions.f",
                "content_type": "<|constrain|>json",
                "content": '{"a":1}',
            },
        ],
    }

"""A constraint whatever its calls are, and what is kept for the next answers: grammars, their states, threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from byte_tokenizers import TINY_SPECIAL, TINY_VOCABULARY, byte_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structure_answers import RandomAnswer, accepts, has, messages_of, refused, tokens_of
from structure_schemas import loads, obeys
from tokenizers import Tokenizer, decoders

from gptoss_export.errors import RunError, UsageError
from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.structure.formats import CallableTool, JsonObject, JsonSchema
from gptoss_export.structure.grammars import MOST_GRAMMARS, NO_FORCING, Grammars
from gptoss_export.structure.structures import Structures
from gptoss_export.structure.token_bytes import TokenBytes

TOOL = CallableTool("get", {"properties": {"n": {"type": "integer"}}}, strict=True)
ANSWERS = [
    "<|channel|>analysis<|message|>Hm, 日本<|end|><|start|>assistant<|channel|>final<|message|>"
    + '{"a": [1, "é"]}<|return|>',
    "<|channel|>commentary<|message|>Hm<|end|><|start|>assistant to=functions.get<|channel|>commentary json<|message|>"
    '{"n": 12}<|call|>',
    "<|channel|>final <|constrain|>json<|message|>{}<|return|>",
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 120)), min_size=1, max_size=12))
def test_masks_depend_on_the_tokens_alone(
    small: HarmonyTokenizer, small_structures: Structures, calls: list[tuple[int, int]]
) -> None:
    """The same tokens again, fewer, more by any number, others: each mask is that of a fresh constraint."""
    answers = [tokens_of(small, text) for text in ANSWERS]
    allowed = small_structures.of_answer(JsonObject(), [TOOL])
    for which, length in calls:
        tokens = answers[which][:length]
        assert allowed(tokens) == small_structures.of_answer(JsonObject(), [TOOL])(tuple(tokens))


def test_a_token_that_is_not_allowed_is_an_error_of_this_answer(
    small: HarmonyTokenizer, small_structures: Structures
) -> None:
    """The next call reads the answer again."""
    good = tokens_of(small, ANSWERS[1])
    allowed, beside = (small_structures.of_answer(JsonObject(), [TOOL]) for _ in range(2))
    for at in (0, 3, 12, good.index(small.start), len(good) - 6, len(good)):
        wrong = small.message if at < len(good) and good[at] != small.message else small.end
        if has(allowed(good[:at]), wrong):
            wrong = small.constrain
        allowed(good[: at // 2])
        for _ in range(2):
            with pytest.raises(RunError, match=f"token {wrong} at {at} of the answer"):
                allowed([*good[:at], wrong])
        assert allowed(good[:at]) == beside(good[:at])
        assert refused(allowed, good[: at + 1]) is None
    assert refused(beside, good) is None


@pytest.mark.parametrize("token", [-1, 511 + 1, 2**40, 300])
def test_ids_that_are_no_text_are_errors(small: HarmonyTokenizer, small_structures: Structures, token: int) -> None:
    """300 is a name in the vocabulary of bytes, which text can hold; it is in no document's place for a brace."""
    opening = tokens_of(small, "<|channel|>final<|message|>")
    with pytest.raises(RunError, match=f"token {token} at {len(opening)} of the answer"):
        small_structures.of_answer(JsonObject())([*opening, token])
    thinking = tokens_of(small, "<|channel|>analysis<|message|>")
    allowed = small_structures.of_answer(JsonObject())
    if token == 300:
        assert allowed([*thinking, token]) == allowed(thinking)
    else:
        with pytest.raises(RunError):
            allowed([*thinking, token])


# Its states are more than the library's limits allow, after ten tokens or so.
HEAVY = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(x{1,1000}){1,1000}$"}, "b": {}}}


def test_an_answer_that_is_too_complex_fails_alone(real: HarmonyTokenizer, real_structures: Structures) -> None:
    """It shares states with other answers of its schema, which go on."""
    first, heavy, last = (real_structures.of_answer(JsonSchema(HEAVY)) for _ in range(3))
    good = tokens_of(real, '<|channel|>final<|message|>{"b": [1, 2, "x"]}<|return|>')
    assert refused(first, good[:6]) is None
    bad = tokens_of(real, '<|channel|>final<|message|>{"a": "' + "x" * 400)
    for _ in range(2):
        with pytest.raises(RunError, match="the format of this answer is too complex"):
            refused(heavy, bad)
    assert refused(first, good) is None and refused(last, good) is None


def test_grammars_are_kept_and_not_for_ever(small: HarmonyTokenizer) -> None:
    grammars = Grammars(small, TokenBytes.of(small.tokenizer, TINY_VOCABULARY))
    texts = [f'{NO_FORCING}start: "{at}"' for at in range(MOST_GRAMMARS + 3)]
    first, *others = [grammars.compiled(text) for text in texts[:MOST_GRAMMARS]]
    assert grammars.compiled(texts[0]) is first
    for text in texts[MOST_GRAMMARS:]:
        grammars.compiled(text)
    assert grammars.compiled(texts[0]) is first and grammars.compiled(texts[4]) is others[3]
    assert grammars.compiled(texts[1]) is not others[0]


def test_threads_make_and_use_constraints_side_by_side(small: HarmonyTokenizer) -> None:
    """From the first on, with the same schemas and others."""
    structures = Structures(small, TINY_VOCABULARY)
    ends: list[tuple[Any, Any]] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for at in range(12):
                schema = {"type": "array", "items": {"enum": ["a", at % 3, number % 2]}, "maxItems": 4}
                tokens = RandomAnswer(small, 100 * number + at).of(structures.of_answer(JsonSchema(schema)))
                ends.append((schema, loads(messages_of(small, tokens)[-1].content)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors and len(ends) == 72
    assert all(obeys(schema, document) for schema, document in ends)


def test_constraints_of_one_request_do_not_disturb_each_other(
    small: HarmonyTokenizer, small_structures: Structures
) -> None:
    answers = [tokens_of(small, text) for text in ANSWERS]
    constraints = [small_structures.of_answer(JsonObject(), [TOOL]) for _ in answers]
    for length in range(max(map(len, answers))):
        for answer, allowed in zip(answers, constraints, strict=True):
            if length < len(answer):
                assert has(allowed(answer[:length]), answer[length])


def test_the_library_is_imported_for_a_structure_alone() -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from byte_tokenizers import TINY_SPECIAL, byte_tokenizer\n"
        "from gptoss_export.errors import UsageError\n"
        "from gptoss_export.harmony.vocabulary import HarmonyTokenizer\n"
        "from gptoss_export.structure.formats import JsonObject\n"
        "from gptoss_export.structure.structures import Structures\n"
        "structures = Structures(HarmonyTokenizer.of(byte_tokenizer(TINY_SPECIAL), 512), 512)\n"
        "assert structures.of_answer(None) is None and 'torch' not in sys.modules\n"
        "try: structures.of_answer(JsonObject())\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == "llguidance is not installed; run: pip install 'gptoss-export[serve]'\n", done.stderr


def test_a_tokenizer_that_is_not_byte_level_is_refused() -> None:
    tokenizer = byte_tokenizer(TINY_SPECIAL)
    control = HarmonyTokenizer.of(tokenizer, TINY_VOCABULARY)
    tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(UsageError, match="found a tokenizer with the decoder Metaspace, expected ByteLevel"):
        Structures(control, TINY_VOCABULARY).prepare()


def test_the_bytes_of_tokens_are_those_that_decode(control: HarmonyTokenizer) -> None:
    vocabulary = control.tokenizer.get_vocab_size() + 5
    tokens = TokenBytes.of(control.tokenizer, vocabulary)
    assert tokens.each[-5:] == 5 * [b""] and len(tokens.each) == vocabulary
    wrong = [token for token in tokens.texts() if not decodes_to(control.tokenizer, token, tokens.each[token])]
    assert wrong == [] and len(tokens.texts()) == vocabulary - 5 - len(tokens.special)
    assert all(tokens.each[getattr(control, name)] == f"<|{name}|>".encode() for name in ("start", "end", "message"))


def decodes_to(tokenizer: Tokenizer, token: int, content: bytes) -> bool:
    return tokenizer.decode([token]) == content.decode("utf-8", errors="replace")


def test_all_bytes_are_in_the_vocabulary(control: HarmonyTokenizer) -> None:
    tokens = TokenBytes.of(control.tokenizer, control.tokenizer.get_vocab_size())
    assert {content for content in tokens.each if len(content) == 1} >= {bytes([byte]) for byte in range(256)}
    text = "größer 日本語 😀 \x00\x7f\u00a0\u00ad\t"
    assert b"".join(tokens.each[token] for token in control.encode(text)) == text.encode()


def test_an_added_token_that_is_not_special_is_text(small: HarmonyTokenizer) -> None:
    tokenizer = byte_tokenizer(TINY_SPECIAL)
    tokenizer.add_tokens(["<ä ö>"])
    control = HarmonyTokenizer.of(tokenizer, 520)
    structures, added = Structures(control, 520), tokenizer.token_to_id("<ä ö>")
    assert TokenBytes.of(tokenizer, 520).each[added] == "<ä ö>".encode()

    def mask(text: str) -> bytes:
        return structures.of_answer(JsonSchema({"const": "a<ä ö>"}))(tokens_of(control, text))

    assert has(mask("<|channel|>analysis<|message|>"), added)
    assert has(mask('<|channel|>final<|message|>"a'), added) and not has(mask('<|channel|>final<|message|>"'), added)
    assert accepts(
        structures.of_answer(JsonSchema({"const": "a<ä ö>"})), control, '<|channel|>final<|message|>"a<ä ö>"<|return|>'
    )


def test_any_sequence_of_tokens_is_taken(small: HarmonyTokenizer, small_structures: Structures) -> None:
    answer: Sequence[int] = tokens_of(small, ANSWERS[2])
    masks = [small_structures.of_answer(JsonObject())(kind(answer)) for kind in (list, tuple)]
    assert masks[0] == masks[1] and type(masks[0]) is bytes

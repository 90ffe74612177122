"""The programs of an artifact, from its sizes: which there are, and what the caches hold."""

from __future__ import annotations

from gptoss_export.artifact.calls import Role
from gptoss_export.artifact.programs import Sizes, kv_inputs, model_programs, programs_of
from gptoss_export.checkpoint.synthetic import PRESETS

CONFIG = PRESETS["tiny"]  # 2 kv heads of 32; layers 0 and 2 have a window of 32
SIZES = Sizes(widths=(1, 3), max_context=400, prefill_chunks=(16, 64))


def test_names() -> None:
    assert [program.name for program in programs_of(SIZES, "cpu")] == [
        "decode_1",
        "decode_3",
        "prefill_16",
        "prefill_64",
        "unembed_1",
        "unembed_64",
        "choose_drawn",
        "choose_limited",
        "choose_adjusted",
    ]
    assert model_programs(SIZES) == programs_of(SIZES, "cpu")[:-3]
    assert [program.name for program in programs_of(SIZES, "cuda")[9:]] == ["interleave"]


def test_tables_hold_every_slot_and_caches_any_number_of_pages() -> None:
    found = {item.name: (item.shape, item.dtype) for item in kv_inputs(CONFIG, SIZES, "bfloat16")}
    assert list(found)[:4] == ["pages.full_attention", "pages.sliding_attention", "k_cache.0", "v_cache.0"]
    assert list(found.values()) == [((3, 7), "int32")] * 2 + [((None, 2, 64, 32), "bfloat16")] * 8


def test_shapes_of_the_data() -> None:
    data = {
        program.name: [(item.name, item.shape) for item in program.signature(CONFIG, SIZES, "float32").inputs
                       if item.role == Role.DATA]
        for program in programs_of(SIZES, "cpu")
    }  # fmt: skip
    assert data["decode_3"] == [("tokens", (3,)), ("positions", (3,)), ("slots", (3,))]
    assert data["prefill_16"] == [("tokens", (16,)), ("positions", (16,)), ("slots", (1,))]
    assert data["prefill_64"] == [("tokens", (64,)), ("positions", (64,)), ("slots", (4,))]
    assert data["unembed_64"] == [("hidden", (64, 96))]
    rows = [("logits", (None, 512)), ("log_total", (None,)), ("positions", (None,)), ("slots", (None,))]
    assert data["choose_drawn"] == data["choose_limited"] == data["choose_adjusted"] == rows


def test_a_choice_reads_the_state_of_all_slots() -> None:
    drawn, adjusted = (program.signature(CONFIG, SIZES, "float32") for program in programs_of(SIZES, "cpu")[-2:])
    state = {item.name: (item.shape, item.dtype) for item in adjusted.inputs_of(Role.STATE)}
    assert {name: state[name] for name in ("sampling.temperature", "sampling.counts", "sampling.allowed")} == {
        "sampling.temperature": ((3,), "float32"),
        "sampling.counts": ((3, 512), "int32"),
        "sampling.allowed": ((3, 16), "int32"),
    }
    assert set(drawn.inputs) < set(adjusted.inputs) and adjusted.outputs[:2] == drawn.outputs
    assert [(item.name, item.shape) for item in adjusted.outputs[2:]] == [
        ("top", (None, 20)),
        ("top_logprobs", (None, 20)),
    ]
    assert str(drawn.inputs[0]) == "data float32 [rows, 512]"


def test_a_decode_step_gives_the_tokens_and_positions_of_the_next() -> None:
    (decode,) = (program for program in programs_of(SIZES, "cpu") if program.name == "decode_3")
    data = {item.name: (item.shape, item.dtype) for item in decode.signature(CONFIG, SIZES, "float32").outputs}
    assert list(data) == ["logits", "top", "top_logprob", "log_total", "next_positions"]
    assert data["top"] == data["next_positions"] == ((3,), "int64")


def test_only_the_unembedding_reads_its_weights_after_a_prefill() -> None:
    names = {
        program.name: {item.name for item in program.signature(CONFIG, SIZES, "float32").inputs_of(Role.WEIGHT)}
        for program in programs_of(SIZES, "cpu")
    }
    unembedding = {"model.norm.weight", "lm_head.weight"}
    assert names["unembed_1"] == names["unembed_64"] == unembedding
    assert not names["prefill_16"] & unembedding
    assert names["decode_1"] == names["decode_3"] == names["prefill_16"] | unembedding

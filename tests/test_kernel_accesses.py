"""What torch asks of a kernel is asked once a kind of call, and the answers are those that it would get anew."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.compiler.export import Shapes, trace
from gptoss_export.compiler.lower import lower
from gptoss_export.progress import Steps
from gptoss_export.targets import TARGETS, Plan, kernel_accesses, stand_in

wrap = pytest.importorskip("torch._higher_order_ops.triton_kernel_wrap")
pytest.importorskip("triton")

CONFIG = dataclasses.replace(PRESETS["tiny"], num_hidden_layers=2, layer_types=PRESETS["tiny"].layer_types[:2])
SHAPES = Shapes(max_batch=1, max_context=64, prefill_chunks=(16,))
(NAME,) = [name for name in ("identify_accessed_tensors", "identify_mutated_tensors") if hasattr(wrap, name)]


@pytest.mark.skipif(bool(stand_in.problems()), reason="; ".join(stand_in.problems()))
def test_answers_are_those_of_torch(tmp_path, monkeypatch):
    """Whenever torch asks while a step and a chunk are compiled."""
    target, remembering = TARGETS["aoti"], kernel_accesses._remembering
    wanted, asked = [], []

    def held_against(ask):
        answer = remembering(lambda *call: asked.append(call) or ask(*call))

        def both(kernel, kwargs, metadata):
            anew, found = ask(kernel, dict(kwargs), metadata), answer(kernel, kwargs, metadata)
            assert found == anew and written(found) == written(anew)  # sets are equal in any order, torch uses theirs
            wanted.append((getattr(kernel, "fn", kernel).__name__, written(found)))
            return found

        return both

    monkeypatch.setattr(kernel_accesses, "_remembering", held_against)
    with target.compiling("cuda", "sm_90"):
        plan = Plan(CONFIG, SHAPES, "cuda", "sm_90", (), (), {}, tmp_path, Steps())
        traced = trace(CONFIG, SHAPES, torch.bfloat16, target.trace_device("cuda"))
        target.compile([lower(traced[name](), target.implementations(plan)) for name in ("decode", "prefill_16")], plan)
    assert {"_qkv_pdl", "_down_pdl", "_gate_up_many", "_down_many"} <= {name for name, _ in wanted}
    assert all(names for _, names in wanted) and len(asked) < len(wanted) / 4


def written(answer) -> list[str]:
    """The arguments that a kernel writes."""
    return answer if isinstance(answer, list) else [access.name for access in answer.read_writes.writes]


def test_calls_that_differ_are_asked_for_anew(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from triton import Config
    from triton.runtime.autotuner import Autotuner

    def tuned(kernel: str, **blocks: int) -> Autotuner:
        made = Autotuner.__new__(Autotuner)
        made.fn, made.configs = kernel, [Config(blocks)]
        return made

    with FakeTensorMode():
        half, other, single = torch.empty(3, dtype=torch.bfloat16), torch.empty(5, dtype=torch.bfloat16), torch.empty(3)
    calls = [
        ("a", {"x": half, "N": 1}, {}),
        ("a", {"x": half, "N": 2}, {}),
        ("a", {"x": half, "N": True}, {}),
        ("a", {"x": single, "N": 1}, {}),
        ("a", {"x": None, "N": 1}, {}),
        ("b", {"x": half, "N": 1}, {}),
        (tuned("a", BLOCK=1), {"x": half, "N": 1}, {}),
        (tuned("a", BLOCK=2), {"x": half, "N": 1}, {}),
    ]
    again = [("a", {"x": other, "N": 1}, {}), (tuned("a", BLOCK=1), {"x": other, "N": 1}, {})]
    unknown = [("a", {"x": torch.empty(3), "N": 1}, {}), ("a", {"x": half, "N": 1}, {"x": ("stable", None)})]
    asked: list[tuple] = []
    monkeypatch.setattr(wrap, NAME, lambda *call: asked.append(call) or [len(asked)])
    before = getattr(wrap, NAME)
    with kernel_accesses.asked_once():
        answers = [getattr(wrap, NAME)(*call) for call in calls]
        assert answers == [[number] for number in range(1, len(calls) + 1)]
        answers[0].append("the caller's own")
        assert [getattr(wrap, NAME)(*call) for call in again] == [[1], [7]]
        assert [getattr(wrap, NAME)(*call) for call in unknown * 2] == [[9], [10], [11], [12]]
    assert getattr(wrap, NAME) is before
    with kernel_accesses.asked_once():  # forgets
        assert getattr(wrap, NAME)(*calls[0]) == [13]

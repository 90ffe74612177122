"""torch analyses a kernel once for each kind of call, and the answers are those that it would give each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import TWO_LAYERS
from gptoss_export.artifact.programs import Decode, Prefill, Sizes
from gptoss_export.compat import mutation_analysis
from gptoss_export.compiler.export import trace
from gptoss_export.compiler.lower import lower
from gptoss_export.errors import CompatibilityError
from gptoss_export.kernels.kernel import ConfigChooser
from gptoss_export.progress import Progress
from gptoss_export.targets.aoti import cross_compile
from gptoss_export.targets.aoti.compile import COMPILER
from gptoss_export.targets.base_compiler import CompileJob

wrap = pytest.importorskip("torch._higher_order_ops.triton_kernel_wrap")
pytest.importorskip("triton")

SIZES = Sizes(widths=(1,), max_context=300, prefill_chunks=(272,))  # a chunk of its own kernels
(NAME,) = [name for name in mutation_analysis.NAMES if hasattr(wrap, name)]


@pytest.mark.skipif(bool(cross_compile.problems()), reason="; ".join(cross_compile.problems()))
def test_answers_are_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever torch asks while a step and a chunk are compiled."""
    caching = mutation_analysis.caching
    wanted: list[tuple[str, list[str]]] = []
    asked: list[Any] = []

    def compared(analyse: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*call: Any) -> Any:
            asked.append(call)
            return analyse(*call)

        cached = caching(counted)

        def both(kernel: Any, kwargs: dict[str, Any], metadata: Any) -> Any:
            again, found = analyse(kernel, dict(kwargs), metadata), cached(kernel, kwargs, metadata)
            # Sets are equal in any order, and torch uses theirs.
            assert found == again and written(found) == written(again)
            wanted.append((getattr(kernel, "fn", kernel).__name__, written(found)))
            return found

        return both

    monkeypatch.setattr(mutation_analysis, "caching", compared)
    implementations = COMPILER.implementations("cuda", ConfigChooser("sm_90"))
    job = CompileJob(TWO_LAYERS, SIZES, "cuda", "sm_90", COMPILER.options_class(), (), {}, tmp_path, "{}", Progress())
    with COMPILER.environment("cuda", "sm_90"):
        compilation = COMPILER.start(job)
        for program in (Decode(1), Prefill(272)):
            traced = trace(program, TWO_LAYERS, SIZES, torch.bfloat16, COMPILER.trace_device("cuda"))
            compilation.compile(lower(traced, implementations))
        compilation.finish()
    assert {"_qkv_pdl", "_down_pdl", "_route_chunk_pdl", "gate_up_many_pdl", "down_many_pdl"} <= {
        name for name, _ in wanted
    }
    assert all(names for _, names in wanted) and len(asked) < len(wanted) / 4


def written(answer: Any) -> list[str]:
    """The arguments that a kernel writes."""
    return answer if isinstance(answer, list) else [access.name for access in answer.read_writes.writes]


def test_calls_that_differ_are_analysed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from triton import Config
    from triton.runtime.autotuner import Autotuner

    def tuned(kernel: str, **blocks: int) -> Autotuner:
        made = Autotuner.__new__(Autotuner)
        made.fn, made.configs = kernel, [Config(blocks)]
        return made

    with FakeTensorMode():
        half, other, single = torch.empty(3, dtype=torch.bfloat16), torch.empty(5, dtype=torch.bfloat16), torch.empty(3)
    calls: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        ("a", {"x": half, "N": 1}, {}),
        ("a", {"x": half, "N": 2}, {}),
        ("a", {"x": half, "N": True}, {}),
        ("a", {"x": single, "N": 1}, {}),
        ("a", {"x": None, "N": 1}, {}),
        ("b", {"x": half, "N": 1}, {}),
        (tuned("a", BLOCK=1), {"x": half, "N": 1}, {}),
        (tuned("a", BLOCK=2), {"x": half, "N": 1}, {}),
    ]
    again: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        ("a", {"x": other, "N": 1}, {}),
        (tuned("a", BLOCK=1), {"x": other, "N": 1}, {}),
    ]
    unknown = [("a", {"x": torch.empty(3), "N": 1}, {}), ("a", {"x": half, "N": 1}, {"x": ("stable", None)})]
    asked: list[Any] = []

    def analyse(*call: Any) -> list[Any]:
        asked.append(call)
        return [len(asked)]

    monkeypatch.setattr(wrap, NAME, analyse)
    with mutation_analysis.cached_mutation_analysis():
        answers = [getattr(wrap, NAME)(*call) for call in calls]
        assert answers == [[number] for number in range(1, len(calls) + 1)]
        answers[0].append("the caller's own")
        assert [getattr(wrap, NAME)(*call) for call in again] == [[1], [7]]
        assert [getattr(wrap, NAME)(*call) for call in unknown * 2] == [[9], [10], [11], [12]]
    assert getattr(wrap, NAME) is analyse
    with mutation_analysis.cached_mutation_analysis():  # forgets
        assert getattr(wrap, NAME)(*calls[0]) == [13]


def test_a_torch_without_the_analysis_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(wrap, NAME)
    with (
        pytest.raises(CompatibilityError, match="has none of identify_accessed_tensors, identify_mutated_tensors"),
        mutation_analysis.cached_mutation_analysis(),
    ):
        pass

"""Loading, replacing and unloading adapters while sequences run, and the prefixes that sequences share."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapter_samples import KINDS, Oracle, make_adapter
from eager_artifact import load_eager, write_eager
from transformers import GptOssForCausalLM

from gptoss_export import Engine, Runner
from gptoss_export.artifact.programs import Sizes
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import GptOssExportError, RunError, UsageError
from gptoss_export.model.kv_cache import page_bytes

Oracles = dict[str | None, Oracle]


def test_adapters_come_and_go_while_others_run(
    eager: Runner, adapters: dict[str, Path], oracles: Oracles, sequence: list[int]
) -> None:
    """Two sequences run from beginning to end. Meanwhile an adapter is loaded, used, and replaced by another one."""
    eager.load_adapter("kept", adapters["attention"])
    prompts = {name: sequence[at : at + 50] for at, name in enumerate(("kept", None, "first", "second"))}
    engine = Engine(eager)
    running = [engine.submit(prompts[name], 40, stop_tokens=(), adapter=name) for name in ("kept", None)]
    for _ in range(8):
        engine.step()
    assert all(0 < len(handle.tokens) < 20 for handle in running)
    eager.load_adapter("other", adapters["both"])
    first = engine.submit(prompts["first"], 6, stop_tokens=(), adapter="other")
    assert first.result().tokens == oracles["both"].continued(prompts["first"], 6)
    eager.load_adapter("other", adapters["experts"])  # in its place
    assert eager.adapters == ("kept", "other")
    second = engine.submit(prompts["second"], 6, stop_tokens=(), adapter="other")
    assert second.result().tokens == oracles["experts"].continued(prompts["second"], 6)
    eager.unload_adapter("other")
    assert eager.adapters == ("kept",) and all(handle.finish is None for handle in running)
    found = [handle.result().tokens for handle in running]
    engine.close()
    assert found == [oracles[name].continued(prompts[key], 40) for name, key in (("attention", "kept"), (None, None))]


def test_an_adapter_that_requests_use_stays(eager: Runner, adapters: dict[str, Path], sequence: list[int]) -> None:
    """Those that wait for a slot too."""
    eager.load_adapter("mine", adapters["attention"])
    engine = Engine(eager)
    handles = [engine.submit(sequence[:9], 3, stop_tokens=(), adapter="mine") for _ in range(6)]
    engine.step()
    message = "adapter 'mine': 6 requests use it; let them end or cancel them before it is unloaded or replaced"
    with pytest.raises(RunError, match=message):
        eager.unload_adapter("mine")
    with pytest.raises(RunError, match=message):
        eager.load_adapter("mine", adapters["both"])
    for handle in handles[1:]:
        handle.cancel()
    handles[0].result()
    eager.unload_adapter("mine")
    with pytest.raises(UsageError, match="adapter 'mine': is not loaded, expected one of those that are: none"):
        engine.submit(sequence[:9], adapter="mine")
    engine.close()


def test_an_adapter_that_a_slot_uses_stays(eager: Runner, adapters: dict[str, Path], sequence: list[int]) -> None:
    eager.load_adapter("mine", adapters["attention"])
    stream = eager.stream(sequence[:9], 5, stop_tokens=(), adapter="mine")
    next(stream)
    for change in (
        lambda: eager.unload_adapter("mine"),
        lambda: eager.load_adapter("mine", adapters["both"]),
    ):
        with pytest.raises(RunError, match="adapter 'mine': the sequence of slot 0 uses it; reset the slot before"):
            change()
    assert len(list(stream)) == 4  # the refusals have not ended it
    eager.reset()
    eager.reset(2, "mine")
    eager.unload_adapter("mine")
    for call in lambda: eager.prefill([1], 2), lambda: eager.decode([None, None, 1, None]):
        with pytest.raises(RunError, match="slot 2: its adapter 'mine' was unloaded; reset the slot"):
            call()
    eager.reset()
    eager.prefill([1], 2)


def test_sequences_of_different_adapters_share_no_pages(
    eager: Runner,
    adapters: dict[str, Path],
    oracles: Oracles,
    transformer: GptOssForCausalLM,
    tmp_path: Path,
    sequence: list[int],
) -> None:
    """The same prompt of more than three pages: each adapter finds its own pages, and those of other weights under its
    name are not its own."""
    other = make_adapter(transformer, tmp_path / "other", seed=11, **KINDS["attention"])
    eager.load_adapter("a", adapters["attention"])
    eager.load_adapter("b", adapters["both"])
    prompt = sequence[:200]
    with Engine(eager) as engine:

        def reused(name: str | None, oracle: Oracle) -> int:
            found = engine.submit(prompt, 4, stop_tokens=(), adapter=name).result()
            assert found.tokens == oracle.continued(prompt, 4), name
            return found.reused_tokens

        assert [reused(None, oracles[None]) for _ in range(2)] == [0, 192]
        assert [reused("a", oracles["attention"]) for _ in range(2)] == [0, 192]
        assert [reused("b", oracles["both"]) for _ in range(2)] == [0, 192]
        assert [reused(None, oracles[None]), reused("a", oracles["attention"])] == [192, 192]
        eager.unload_adapter("a")
        eager.load_adapter("a", tmp_path / "other")
        assert [reused("a", other) for _ in range(2)] == [0, 192]
        eager.load_adapter("a", adapters["attention"])
        assert [reused("a", oracles["attention"]), reused("b", oracles["both"])] == [0, 192]


def test_a_sequence_that_was_set_back_has_its_adapter_again(
    eager_folder: Path, checkpoints: dict[str, Path], adapters: dict[str, Path], oracles: Oracles, sequence: list[int]
) -> None:
    """A pool in which only one of two sequences finds room for its answer."""
    runner = load_eager(eager_folder, checkpoints["hf"], kv_memory=10 * page_bytes(PRESETS["tiny"], 4))
    runner.load_adapter("a", adapters["attention"])
    runner.load_adapter("b", adapters["both"])
    prompts = {"a": sequence[:60], "b": sequence[60:120]}
    with Engine(runner) as engine:
        handles = {name: engine.submit(prompts[name], 90, stop_tokens=(), adapter=name) for name in ("a", "b")}
        found = {name: handle.result().tokens for name, handle in handles.items()}
        assert engine.stats().set_back > 0
    assert found == {
        "a": oracles["attention"].continued(prompts["a"], 90),
        "b": oracles["both"].continued(prompts["b"], 90),
    }


def test_there_are_as_many_as_slots(eager: Runner, adapters: dict[str, Path]) -> None:
    for name in "one", "two", "three":
        eager.load_adapter(name, adapters["attention"])
    message = "adapter 'four': all 3 adapter slots are taken by 'one', 'two', 'three'; unload one, or build with more"
    with pytest.raises(UsageError, match=message):
        eager.load_adapter("four", adapters["attention"])
    eager.load_adapter("two", adapters["both"])
    eager.unload_adapter("one")
    eager.load_adapter("four", adapters["attention"])
    assert set(eager.adapters) == {"two", "three", "four"}


def test_names(eager: Runner, adapters: dict[str, Path]) -> None:
    eager.load_adapter("mine", adapters["attention"])
    calls = (
        lambda name: eager.generate([1], adapter=name),
        lambda name: eager.stream([1], adapter=name),
        lambda name: eager.generate_batch([[1]], adapters=[name]),
        lambda name: eager.reset(0, name),
        lambda name: eager.unload_adapter(name),
    )
    for name in "other", "", 3:
        for call in calls:
            with pytest.raises(UsageError, match=f"adapter {name!r}: is not loaded, .*: 'mine'"):
                call(name)
    for name in "", 3:
        with pytest.raises(UsageError, match="expected a name"):
            eager.load_adapter(name, adapters["both"])  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"adapters: 2 for 1 prompts, expected one \(or None\) for each"):
        eager.generate_batch([[1]], adapters=["mine", None])
    with pytest.raises(RunError, match=r"adapters: found 'mine', expected a sequence of names \(or None\)"):
        eager.generate_batch([[1]], adapters="mine")


def test_an_artifact_without_adapter_slots(
    checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_eager(tmp_path / "artifact", checkpoints["hf"], Sizes((1,), 64, (16,)), "float32")
    runner = load_eager(folder, checkpoints["hf"])
    message = "adapter 'mine': the artifact takes no adapters; build it with --adapter-slots and --adapter-rank"
    for call in (
        lambda: runner.load_adapter("mine", adapters["attention"]),
        lambda: runner.unload_adapter("mine"),
        lambda: runner.generate([1], adapter="mine"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    assert runner.adapters == ()


def test_a_failed_load_changes_nothing(
    eager: Runner, adapters: dict[str, Path], oracles: Oracles, sequence: list[int], tmp_path: Path
) -> None:
    eager.load_adapter("mine", adapters["both"])
    for name in "mine", "new":
        with pytest.raises(GptOssExportError, match=r"adapter_config\.json: not found"):
            eager.load_adapter(name, tmp_path)
    assert eager.adapters == ("mine",)
    found = eager.generate(sequence[:20], 4, stop_tokens=(), adapter="mine").tokens
    assert found == oracles["both"].continued(sequence[:20], 4)

"""Tables of measured cuts: what they say for a shape, how they are found, and how they reach a build."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner

from gptoss_export import tuning
from gptoss_export.build import _tables_that_serve
from gptoss_export.tuning.op_calls import Call, calls
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.cli.tune import command
from gptoss_export.errors import RunError, UsageError
from gptoss_export.compiler.export import Shapes
from gptoss_export.kernels.kernel import Cut, Kernel, flat, parts
from gptoss_export.compiler.lower import compiler, shipped_tables
from gptoss_export.model.ops import OPS
from gptoss_export.kernels.tuned_configs import CutTable, Entry, read_table, write_table
from gptoss_export.targets import target
from gptoss_export.tuning import Tuned
from gptoss_export.tuning.inputs import real_inputs
from gptoss_export.tuning.search import search
from gptoss_export.tuning.timing import Refused, Timing


class Numbers(NamedTuple):
    rows: int
    warps: int


SHAPE = {"tokens": 4, "hidden": 96, "dtype": "bfloat16"}
CUT = Cut(
    name="product", shape=SHAPE, sizes=("tokens",), default={"first": Numbers(4, 2), "second": Numbers(1, 1)},
    options={"first": {"rows": (1, 2, 4, 8), "warps": (1, 2, 4)}, "second": {"rows": (1, 2, 4)}},
)  # fmt: skip


OWN = Path("own.json")


def entry(tokens: int = 4, rows: int = 8, **shape: Any) -> Entry:
    tiles = {"first": {"rows": rows, "warps": 1}, "second": {"rows": 1, "warps": 1}}
    return Entry("product", SHAPE | {"tokens": tokens} | shape, tiles, us=1.0, default_us=2.0)


def table(*entries: Entry, arch: str = "sm_90") -> CutTable:
    return CutTable(arch, "NVIDIA H200", {"triton": "3.6.0"}, entries, OWN)


# ---- what a table says -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "rows"),
    [
        ([entry(4, 8)], 8),
        ([entry(8, 2), entry(4, 8)], 8),
        ([entry(8, 2), entry(3, 1)], 1),  # the nearest of two
        ([entry(2, 2)], 2),  # half as many tokens are near enough
        ([entry(9, 2)], None),
        ([entry(4, 2, hidden=64)], None),
        ([entry(4, 2, dtype="float32")], None),
        ([entry(4, 2, more=1)], None),
        ([dataclasses.replace(entry(), name="other")], None),
        ([], None),
    ],
)
def test_the_nearest_entry_counts(entries, rows):
    found = table(*entries).find(CUT)
    assert (found and found["first"].rows) == rows


def test_entries_of_other_kernels_are_refused():
    old = dataclasses.replace(entry(), tiles={"first": {"rows": 1}})
    with pytest.raises(UsageError, match=r"entry product has the tiles .*'rows'.*run gptoss-export tune again"):
        table(old).find(CUT)


def test_numbers_that_a_kernel_cannot_have_are_refused():
    """For the very shape; an entry of a near one is passed over, since its numbers may be right there."""
    with pytest.raises(UsageError, match=r"entry product has the tiles .*'rows': 3.*expected of .*run gptoss-export tune again"):
        table(entry(rows=3)).find(CUT)
    assert table(entry(8, rows=3)).find(CUT) is None
    assert table(entry(8, rows=3), entry(2, rows=8)).find(CUT)["first"].rows == 8
    assert table(entry(tokens="four")).find(CUT) is None


def test_a_kernel_is_cut_by_the_first_table_that_knows():
    seen = []
    kernel = Kernel(lambda *arguments: seen.append(arguments), lambda x: CUT if x else None)
    tables = (table(entry(rows=1), arch="sm_80"), table(), table(entry(rows=2)), table(entry(rows=8)))
    kernel.bind("sm_90", tables)("x")
    kernel.bind("sm_89", tables)("x")
    kernel.bind("sm_90", tables)("")
    assert seen == [("x", [2, 1, 1, 1], "sm_90"), ("x", [4, 2, 1, 1], "sm_89"), ("", [], "sm_90")]
    assert parts(flat(CUT.default), Numbers, Numbers) == list(CUT.default.values())


def test_a_table_is_read_as_it_was_written(tmp_path):
    written = table(entry(), entry(8)).with_entries([entry(8, rows=1)])
    write_table(written, tmp_path / "t.json")
    read = read_table(tmp_path / "t.json")
    assert set(map(str, read.entries)) == set(map(str, written.entries)) and len(read.entries) == 2
    assert read.label == written.label and read.label.startswith("NVIDIA H200, triton 3.6.0, ")
    assert list(tmp_path.iterdir()) == [tmp_path / "t.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not json", "cannot be read"),
        ([], "expected a table of schema 1"),
        ({"schema": 2}, "expected a table of schema 1"),
        ({"arch": 90, "entries": None}, "(?s)arch: found 90, expected str.*entries: found None, expected list"),
        ({"versions": {"triton": 3.6}}, "versions: found .*expected text by name"),
        ({"entries": [1, {"name": "x"}]}, r"(?s)entries\[0\]: expected an object.*entries\[1\]: expected an object"),
        ({"entries": [vars(entry()) | {"tiles": {"first": {"rows": 0}}}]}, r"entries\[0\]: tiles: found .*numbers from 1"),
        ({"entries": [vars(entry()) | {"shape": {"tokens": 1.5}}]}, r"entries\[0\]: shape: found"),
        ({"entries": [vars(entry()) | {"shape": {"tokens": -4}}]}, r"entries\[0\]: shape: found"),
        ({"entries": [vars(entry()) | {"us": "1"}]}, "us, default_us: expected microseconds"),
        ({"entries": [vars(entry()) | {"us": float("inf")}]}, "us, default_us: expected microseconds"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, change, message):
    path = tmp_path / "t.json"
    write_table(table(entry()), path)
    if isinstance(change, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        path.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(UsageError, match=message):
        read_table(path)


# ---- how a cut is found ------------------------------------------------------------------------------------


def test_search_finds_the_best_of_each_number():
    wanted = {"first": Numbers(8, 1), "second": Numbers(4, 1)}

    def microseconds(tiles) -> float:
        return 10.0 + sum(abs(a - b) for a, b in zip(flat(tiles), flat(wanted), strict=True))

    best = search(CUT, microseconds)
    assert best.tiles == wanted and best.us == 10.0 and best.default_us == microseconds(CUT.default)
    assert best.tried < 4 * 3 * 3


@pytest.mark.parametrize("gain", [0.0, 0.005, float("-inf")])
def test_search_keeps_the_guess_where_nothing_is_faster(gain):
    """As fast, faster by less than noise, or refused."""
    best = search(CUT, lambda tiles: 10.0 if tiles == CUT.default else 10.0 * (1 - gain))
    assert best.tiles == CUT.default and best.us == best.default_us == 10.0


def test_search_ends_where_the_guess_is_refused():
    best = search(CUT, lambda tiles: float("inf") if tiles == CUT.default else 1.0)
    assert best.tiles == CUT.default and best.us == best.default_us == float("inf") and best.tried == 1


def test_search_keeps_the_guess_where_a_gain_does_not_repeat():
    seen = []

    def microseconds(tiles) -> float:
        seen.append(tiles)
        return 5.0 if seen.count(tiles) == 1 and tiles != CUT.default else 10.0

    assert search(CUT, microseconds).tiles == CUT.default


# ---- the calls of a model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def called() -> list[Call]:
    """Of a 20b; what a table was measured for."""
    return calls(PRESETS["20b"], Shapes(1, 8192, (128, 2048)), torch.bfloat16)


def test_every_kernel_that_can_be_cut_is_called(called):
    assert {call.op for call in called} == set(OPS) - {"rotary", "kv_write"}
    assert {call.cut.name for call in called} == {
        "attention", "attention_step", "experts_few", "experts_many", "experts_step", "unembed",
    }  # fmt: skip


def test_the_shipped_tables_know_the_calls_of_a_20b(called):
    """Each on its own knows what its compiler does otherwise; the first is the one of the compiler here."""
    shipped = [table for table in shipped_tables() if table.arch == "sm_90"]
    assert [str(call.cut) for call in called if not any(table.find(call.cut) for table in shipped)] == []
    assert all(entry.us <= entry.default_us for table in shipped for entry in table.entries)
    assert shipped[0].versions["triton"].split(".")[:2] == compiler().split(".")[:2]


def test_inputs_are_real():
    """Routing that differs by token, positions inside of the context, values that a model could have."""
    for call in calls(PRESETS["tiny"], Shapes(2, 512, (64,)), torch.bfloat16):
        inputs = dict(zip(call.arguments, real_inputs(call, 1, torch.device("cpu"), 300), strict=True))
        for name, value in call.arguments.items():
            if isinstance(value, torch.Tensor):
                assert (inputs[name].shape, inputs[name].dtype) == (value.shape, value.dtype)
        if "expert_indices" in inputs:
            assert len(inputs["expert_indices"].flatten().unique()) > 4
        if "positions" in inputs:
            last = inputs["positions"].max().item()
            assert 300 - 64 <= last <= 300 and inputs["positions"].min() >= 0
        result = OPS[call.op].reference(*inputs.values())
        result = (result if isinstance(result, tuple) else (result,))[0].float()
        assert 0.01 < result.square().mean().sqrt() < 10


# ---- which cuts are refused ----------------------------------------------------------------------------------


@pytest.fixture
def timing(monkeypatch):
    """Of a decode step's attention, with a `kernel` of this test in place of the GPU's."""
    monkeypatch.setattr(Timing, "_time", lambda self, numbers: float(numbers[0]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    made = calls(PRESETS["tiny"], Shapes(1, 256, (64,)), torch.bfloat16)
    call = next(call for call in made if call.cut.name == "attention_step")

    def make(kernel) -> Timing:
        return Timing(dataclasses.replace(call, kernel=Kernel(kernel)), "sm_90", 256, torch.device("cpu"))

    return make


def rows(count: int) -> dict[str, tuple[int, ...]]:
    return {"qkv": Numbers(count, 1)}


def test_a_cut_with_other_results_is_refused(timing):
    """What it returns and what it writes into the caches, although those hold the right values from the cut before."""

    def kernel(*arguments):
        *inputs, numbers, _ = arguments
        if numbers[0] == 4:
            inputs[7:9] = [cache.clone() for cache in inputs[7:9]]
        result = OPS["attention_sublayer"].reference(*inputs)
        return result * 1.1 if numbers[0] == 8 else result

    timed = timing(kernel)
    assert [timed.microseconds(rows(count)) for count in (2, 4, 8, 1)] == [2.0, float("inf"), float("inf"), 1.0]
    assert [(refused.tiles, refused.wrong) for refused in timed.refused] == [(rows(4), True), (rows(8), True)]


def test_a_cut_that_does_not_run_is_refused(timing):
    problems = {4: ValueError("no such tile"), 8: torch.OutOfMemoryError("19 GB"), 16: RuntimeError("PassManager::run failed\nmore")}

    def kernel(*arguments):
        *inputs, numbers, _ = arguments
        if numbers[0] in problems:
            raise problems[numbers[0]]
        return OPS["attention_sublayer"].reference(*inputs)

    timed = timing(kernel)
    assert [timed.microseconds(rows(count)) for count in (2, 4, 8, 16)] == [2.0] + 3 * [float("inf")]
    assert [refused.why for refused in timed.refused] == ["no such tile", "19 GB", "PassManager::run failed"]
    assert not any(refused.wrong for refused in timed.refused)
    problems[32] = torch.AcceleratorError("an illegal memory access")
    with pytest.raises(RunError, match="(?s)attention_step .*the GPU fails with .*'rows': 32.*illegal memory.*--only"):
        timed.microseconds(rows(32))


def test_two_sets_of_inputs_have_to_fit(timing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1 << 40))
    with pytest.raises(RunError, match="attention_step .*bytes of inputs are needed twice, 1,000 are free"):
        timing(lambda *arguments: None)


# ---- the commands ------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_tune_needs_a_gpu(cli, checkpoints, tmp_path):
    code, _, err = cli("tune", checkpoints["hf"], "-o", tmp_path / "t.json")
    assert code == 2 and "torch finds no CUDA GPU here" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-batch", 0, "--prefill-chunk", 0), "--max-batch 0: expected 1 or more"),
        (("--prefill-chunk", 999, "--max-context", 64), "--prefill-chunk 999: expected at most"),
        (("--max-context", 10**9), "--max-context 1000000000: the model has"),
    ],
)
def test_tune_checks_its_options(cli, checkpoints, tmp_path, options, message):
    code, _, err = cli("tune", checkpoints["hf"], "-o", tmp_path / "t.json", *options)
    assert code == 2 and message in err


def test_tune_writes_and_tells_what_was_found(monkeypatch, checkpoints, tmp_path):
    """As a table or as JSON, with a kernel whose own guess was refused; and keeps what the table held of the same GPU."""
    bad = Refused(CUT.default, "19 GB")
    found = [Tuned(CUT, entry(), 9, []), Tuned(dataclasses.replace(CUT, name="large"), None, 1, [bad])]
    monkeypatch.setattr(target, "gpu_arch", lambda: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(tuning, "tune", lambda *arguments: iter(found))
    arguments = [str(checkpoints["hf"]), "-o", str(tmp_path / "t.json")]
    done = CliRunner().invoke(command, [*arguments, "--json"])
    assert done.exit_code == 0 and "warning: large (tokens 4" in done.stderr and "19 GB" in done.stderr
    first, second = json.loads(done.stdout)["results"]
    assert first == json.loads(json.dumps(vars(entry()))) | {"tried": 9, "refused": []}
    assert second["tiles"] is None and second["refused"] == [{"cut": str(bad), "wrong_results": False}]
    found[:] = [Tuned(CUT, entry(8), 9, [])]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0 and "100.0%" in done.stdout
    assert {kept.shape["tokens"] for kept in read_table(tmp_path / "t.json").entries} == {4, 8}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2 and "holds what was measured on NVIDIA H200" in done.stderr and "NVIDIA A100" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cpu"), "--table: aoti for cpu has none of the kernels"),
        (("--device", "cuda", "--target", "onnx"), "--table: onnx for cuda has none of the kernels"),
        (("--device", "cuda", "--arch", "sm_80"), "is for sm_90, expected one of sm_80"),
    ],
)
def test_a_table_that_does_not_fit_a_build(cli, checkpoints, tmp_path, options, message):
    write_table(table(), tmp_path / "t.json")
    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--table", tmp_path / "t.json", *options)
    if "cannot be built here" in err:
        pytest.skip(err)
    assert code == 2 and message in err and not (tmp_path / "a").exists()


def test_a_build_names_the_tables_that_serve_it(called):
    """A user's own first; one that has nothing to say, or says what no kernel has, is refused before anything is written."""
    call = next(call for call in called if call.cut.name == "unembed")
    tiles = {part: numbers._asdict() for part, numbers in call.cut.default.items()}
    own = table(Entry("unembed", dict(call.cut.shape), tiles, 1.0, 1.0))
    shipped = [shipped.label for shipped in shipped_tables()]

    def serving(*tables: CutTable) -> list[str]:
        return _tables_that_serve((*tables, *shipped_tables()), (OWN,), "sm_90", called)

    assert serving() == shipped and serving(own) == [own.label, *shipped]
    assert _tables_that_serve((own, *shipped_tables()), (OWN,), "sm_80", called) == []
    with pytest.raises(UsageError, match="--table .*has no entry for what this build launches; tune with the sizes"):
        serving(table(entry()))
    tiles["logits"]["rows"] = 3
    with pytest.raises(UsageError, match="entry unembed has the tiles .*'rows': 3.*run gptoss-export tune again"):
        serving(table(Entry("unembed", dict(call.cut.shape), tiles, 1.0, 1.0)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
def test_tune_and_build_with_its_table(cli, checkpoints, tmp_path):
    """What was measured is in the manifest, and what is built with it is right; a second run keeps the first's entries."""
    sizes = "--max-context", 256, "--prefill-chunk", 64
    path: Path = tmp_path / "t.json"
    for name in "unembed", "experts_step":
        code, out, err = cli("tune", checkpoints["hf"], "-o", path, *sizes, "--only", name, "--json")
        assert code == 0, err
        assert all(result["tried"] > 5 and result["us"] <= result["default_us"] for result in json.loads(out)["results"])
    measured = read_table(path)
    assert {entry.name for entry in measured.entries} == {"unembed", "experts_step"}
    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--device", "cuda", *sizes, "--table", path)
    assert code == 0, err
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["provenance"]["kernels"][measured.arch][0] == measured.label
    code, _, err = cli("verify", tmp_path / "a", "--checkpoint", checkpoints["hf"])
    assert code == 0, err

"""The fuzzing tests see each kind of failure, write nothing outside of their folder, and refuse a machine that they
could harm."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import click
import fuzz_machine
import pytest
from fuzz_commands import ENDLESS, READ, CommandCase, Word, words, written_paths
from fuzz_json import EXTREMES, KINDS, Change, Damage, damaged
from fuzz_manifests import Forged, forge
from fuzz_packages import read_members, write_members
from fuzz_report import table
from fuzz_scratch import Scratch
from fuzz_surface import Surface, link_folder, read_json, rehash, replace_bytes, run_case
from fuzz_weights import Stored, read_tensors, write_tensors
from fuzz_worker import REFUSED, RIGHT, Kind, Outcome, Request, Result, Worker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from gptoss_export.cli import COMMANDS, main

if why := fuzz_machine.refusal():
    pytest.skip(why, allow_module_level=True)


class OneJob(Surface[Request]):
    """Runs a request as it is."""

    name, share = "one job", 0

    def cases(self) -> st.SearchStrategy[Request]:
        return st.just(self.unchanged())

    def unchanged(self) -> Request:
        return Request("command", {"argv": ["--version"]})

    def prepare(self, case: Request, scratch: Scratch) -> Request:
        if "path" not in case.arguments:
            return case
        return Request(case.job, {"path": case.arguments["path"].format(root=scratch.root, out=scratch.output)})

    def judge(self, case: Request, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        return RIGHT


def outcome(worker: Worker, tmp_path: Path, job: str, **arguments: Any) -> Outcome:
    surface: Any = OneJob(bases=None)  # type: ignore[arg-type]
    return run_case(surface, Request(job, arguments), Scratch(tmp_path / "case"), worker)


def test_each_kind_of_failure_is_seen(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(worker, tmp_path, "crash").kind == Kind.CRASH
    failed = outcome(worker, tmp_path, "fail")
    assert failed.kind == Kind.TRACEBACK and "KeyError" in failed.detail
    assert outcome(worker, tmp_path, "say", text="x" * 100).kind == Kind.REFUSED
    assert outcome(worker, tmp_path, "say", text="x" * 30_000).kind == Kind.MESSAGE
    assert outcome(worker, tmp_path, "say", text="one\nerror: two").kind == Kind.MESSAGE
    assert outcome(worker, tmp_path, "say", text="\x1b[31mred").kind == Kind.MESSAGE
    assert outcome(worker, tmp_path, "write", path="{out}/new").kind == Kind.RIGHT
    assert outcome(worker, tmp_path, "write", path="{out}/.new.partial").kind == Kind.LEFTOVERS
    assert outcome(worker, tmp_path, "write", path="{root}/a/new").kind == Kind.LEFTOVERS
    assert outcome(worker, tmp_path, "command", argv=["--version"]) == RIGHT
    assert outcome(worker, tmp_path, "command", argv=["nope"]) == REFUSED
    monkeypatch.setattr("fuzz_worker.CPU_SECONDS", 1)
    assert outcome(worker, tmp_path, "busy").kind == Kind.HANG
    monkeypatch.setattr("fuzz_worker.SECONDS", 1)
    monkeypatch.setattr("fuzz_worker.CPU_SECONDS", 30)
    assert outcome(worker, tmp_path, "busy").kind == Kind.HANG


def test_a_job_cannot_write_outside_of_its_scratch_folder(worker: Worker, tmp_path: Path) -> None:
    target = tmp_path / "outside"
    found = outcome(worker, tmp_path, "write", path=str(target))
    assert found.kind in (Kind.LEFTOVERS, Kind.TRACEBACK) and not target.exists()


@settings(max_examples=8, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_paths_that_a_command_may_write_lie_in_the_scratch_folder(data: st.DataObject) -> None:
    scratch = Scratch(Path("/scratch"))
    for name in (name for name in COMMANDS if name not in ENDLESS):
        command = main.get_command(click.Context(main), name)
        assert command is not None
        groups = [data.draw(words(param, name)) for param in command.params]
        case = CommandCase(name, tuple(word for group in groups for word in group))
        for path in written_paths(case, scratch):
            if str(path).startswith("-"):
                continue  # an option without its value: the next word is another option
            assert Path(os.path.normpath(path)).is_relative_to(scratch.output), path


def test_what_may_be_written_is_known_by_name() -> None:
    """A path that is new to the command line counts as one that is written."""
    written = set()
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        paths = {param.name for param in command.params if isinstance(param.type, click.Path)}
        written |= paths - set(READ)
    assert {"output", "folder", "html", "save_logits"} <= written
    assert not {"output", "folder", "html", "save_logits"} & set(READ)


def test_written_paths_are_found() -> None:
    scratch = Scratch(Path("/s"))
    case = CommandCase("build", (Word("{in}/c"), Word("-o"), Word("{out}/a"), Word("--output=/etc/b")))
    assert written_paths(case, scratch) == [scratch.output / "a", Path("/etc/b")]


@pytest.mark.parametrize(
    ("sign", "content"),
    [
        (".dockerenv", ""),
        ("run/.containerenv", ""),
        ("proc/1/cgroup", "12:cpu:/kubepods/besteffort/pod1\n"),
        ("proc/self/cgroup", "0::/system.slice/docker-1.scope\n"),
        ("proc/self/uid_map", "         0     100000      65536\n"),
    ],
)
def test_root_may_fuzz_in_a_container_only(
    sign: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "uid_map").write_text("         0          0 4294967295\n")
    refused = fuzz_machine.refusal({}, tmp_path)
    assert refused is not None and fuzz_machine.OVERRIDE in refused
    assert fuzz_machine.refusal({fuzz_machine.OVERRIDE: "1"}, tmp_path) is None
    assert fuzz_machine.refusal({"container": "podman"}, tmp_path) is None
    (tmp_path / sign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / sign).write_text(content)
    assert fuzz_machine.refusal({}, tmp_path) is None
    (tmp_path / sign).unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert fuzz_machine.refusal({}, tmp_path) is None


def test_changes_of_json_do_what_they_are_called() -> None:
    names = list(EXTREMES)
    document = {"a": [1, 2], "b": {"c": "x"}}

    def changed(*changes: Change) -> str:
        return damaged(document, Damage(changes), Path("/root")).decode()

    assert changed() == '{"a":[1,2],"b":{"c":"x"}}'
    assert changed(Change("drop", (0, 1))) == '{"a":[1],"b":{"c":"x"}}'
    assert changed(Change("twice", (1,))) == '{"a":[1,2],"b":{"c":"x"},"b":{"c":"x"}}'
    assert changed(Change("replace", (1, 0), "NaN")) == '{"a":[1,2],"b":{"c":NaN}}'
    assert changed(Change("rename", (0,), "string up")) == '{"../../../stray":[1,2],"b":{"c":"x"}}'
    assert changed(Change("replace", (0,), "string absolute")) == '{"a":"/root/stray","b":{"c":"x"}}'
    assert changed(Change("swap", (0,), other=(1, 0))) == '{"a":"x","b":{"c":[1,2]}}'
    assert changed(Change("copy", (0, 0), other=(1,))) == '{"a":[{"c":"x"},2],"b":{"c":"x"}}'
    assert changed(Change("reverse", (0, 0))) == '{"a":[2,1],"b":{"c":"x"}}'
    assert changed(Change("near", (0, 0), names[0])) == '{"a":[2,2],"b":{"c":"x"}}'
    assert changed(Change("retype", (0, 0), names[1])) == '{"a":[[1],2],"b":{"c":"x"}}'
    for kind in KINDS:
        assert any(changed(Change(kind, (0, 1), name, (1,))) != changed() for name in names), kind


def test_archives_and_tensors_are_written_as_they_were_read(artifact: Path, tmp_path: Path) -> None:
    (package,) = artifact.glob("*.pt2")
    members = read_members(package)
    (tmp_path / "again.zip").write_bytes(write_members(members))
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        assert archive.testzip() is None
        assert [archive.read(member.name.decode()) for member in members] == [member.data for member in members]
    write_tensors(tmp_path / "t.safetensors", {"a": Stored("F32", (2, 1), bytes(8)), "b": Stored("U8", (3,), b"abc")})
    read = load_file(tmp_path / "t.safetensors")
    assert read["a"].shape == (2, 1) and read["b"].tolist() == list(b"abc")
    shard = min(artifact.glob("weights/*.safetensors"))
    stored = read_tensors(shard)
    for name, tensor in load_file(shard).items():
        assert stored[name].shape == tuple(tensor.shape)
        assert stored[name].data == tensor.flatten().view(dtype=_uint8()).numpy().tobytes()


def test_outcomes_are_added_up() -> None:
    counts = {"packages": {"right": 1, "refused": 2}, "checkpoints": {"refused": 3, "crash": 1}}
    heading, line, checkpoints, packages, total = table(counts).splitlines()
    assert (
        heading
        == "| input | cases | right | refused | crash | hang | traceback | wrong answer | leftovers | bad message |"
    )
    assert line.count("---") == 10
    assert checkpoints == "| checkpoints | 4 | 0 | 3 | 1 | 0 | 0 | 0 | 0 | 0 |"
    assert packages == "| packages | 3 | 1 | 2 | 0 | 0 | 0 | 0 | 0 | 0 |"
    assert total == "| all | 7 | 1 | 5 | 1 | 0 | 0 | 0 | 0 | 0 |"


def _uint8() -> Any:
    import torch

    return torch.uint8


def test_a_forged_manifest_agrees_with_itself(uncompiled: Path, tmp_path: Path, worker: Worker) -> None:
    """What a forger changes is consistent: a damaged hash or shape would be refused before what a case is about."""
    cases = [
        Forged("sizes", 1, "*2"),
        Forged("model", 5, "*2"),
        Forged("layer_types", 0, "+1"),
        Forged("dtype", 0, "+1"),
        Forged("data", 0, "*2"),
    ]
    for index, case in enumerate(cases):
        folder = link_folder(uncompiled, tmp_path / f"forged-{index}")
        manifest = read_json(folder / "manifest.json")
        before = read_json(folder / "manifest.json")
        forge(manifest, case, folder)
        assert manifest != before
        replace_bytes(folder / "manifest.json", json.dumps(manifest).encode())
        rehash(folder, *manifest["files"])
        assert read_json(folder / "manifest.json")["files"] == manifest["files"]
        scratch = Scratch(tmp_path / f"case-{index}")
        scratch.make()
        assert worker.run(Request("command", {"argv": ["inspect", str(folder)]}), scratch).status == 0

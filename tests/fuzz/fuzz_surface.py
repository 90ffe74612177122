"""What all surfaces share: a surface is a kind of input that is changed, with what uses it and what the answer must
be."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fuzz_scratch import Scratch
from fuzz_worker import REFUSED, RIGHT, Kind, Outcome, Request, Result, Worker, failures
from hypothesis.strategies import SearchStrategy

PROMPT = [(37 * index + 11) % 511 for index in range(70)]  # longer than the window and than a chunk
COUNT = 8
CaseType = TypeVar("CaseType")


@dataclass(frozen=True)
class Bases:
    """What is changed. artifact: a real one; uncompiled: one with a few bytes in place of code."""

    artifact: Path
    uncompiled: Path
    checkpoints: dict[str, Path]
    tuned_configs: Path


class Surface(ABC, Generic[CaseType]):
    """Cases of one kind of input."""

    name: str
    share: int  # of 300 cases

    def __init__(self, bases: Bases) -> None:
        self.bases = bases

    @abstractmethod
    def cases(self) -> SearchStrategy[CaseType]:
        """Cases, as plain data whose repr says what is changed."""

    @abstractmethod
    def unchanged(self) -> CaseType:
        """The case that changes nothing, whose answer is right."""

    @abstractmethod
    def prepare(self, case: CaseType, scratch: Scratch) -> Request:
        """Write the changed input into the scratch folder; returns what is done with it."""

    @abstractmethod
    def judge(self, case: CaseType, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        """Whether an answer is right. Called for exit codes 0 and 1 only, and where nothing else is wrong."""


def run_case(surface: Surface[CaseType], case: CaseType, scratch: Scratch, worker: Worker) -> Outcome:
    """Run one case in a new scratch folder; the folder is gone afterwards."""
    scratch.make()
    try:
        result = worker.run(surface.prepare(case, scratch), scratch)
        for failure in failures(result):
            return failure
        return REFUSED if result.status == 2 else surface.judge(case, scratch, result, worker)
    finally:
        scratch.remove()


def wrong(detail: str) -> Outcome:
    return Outcome(Kind.WRONG, detail)


def link_folder(source: Path, folder: Path) -> Path:
    """A copy of a folder whose files are links: replace one, never write into it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        target = folder / path.relative_to(source)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.link(path, target)
    return folder


def replace_bytes(path: Path, data: bytes) -> None:
    """Write a new file in the place of `path`."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def describe(path: Path) -> dict[str, Any]:
    """The entry of a file in a manifest."""
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pieces": []}


def rehash(folder: Path, *names: str) -> None:
    """Write the size and the hash of changed files into the manifest, as a forger does."""
    manifest = read_json(folder / "manifest.json")
    for name in names:
        manifest["files"][name] = describe(folder / name)
    replace_bytes(folder / "manifest.json", json.dumps(manifest).encode())


def run_request(folder: Path, *options: str) -> Request:
    """Run an artifact on the prompt of all cases."""
    tokens = ",".join(map(str, PROMPT))
    argv = ["run", str(folder), "--tokens", tokens, "--max-new-tokens", str(COUNT), "--no-stop", "--json", *options]
    return Request("command", {"argv": argv})


class Answers:
    """The tokens of the artifact as it was built, and those of the reference for a changed one."""

    def __init__(self, bases: Bases) -> None:
        self._bases, self._expected = bases, None

    def judge(self, folder: Path, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        """Whether `run_request` printed the right tokens: those of the artifact as it was built, or else those that
        the reference finds by the manifest and the weights of the changed one."""
        if result.status:
            return wrong(f"exit {result.status}")
        tokens = json.loads(result.stdout)["tokens"]
        if tokens == self.expected(scratch, worker):
            return RIGHT
        scratch.report.unlink()
        arguments = {"folder": str(folder), "prompt": PROMPT, "tokens": tokens}
        told = worker.run(Request("reference", arguments), scratch)
        if told.value and len(tokens) == COUNT and told.value["gap"] <= 1e-3:
            return RIGHT
        return wrong(f"tokens {tokens}, expected {self._expected} or those of the reference ({told.value})")

    def expected(self, scratch: Scratch, worker: Worker) -> list[int]:
        if self._expected is None:
            own = Scratch(scratch.root.with_name(f"{scratch.root.name}-expected"))
            own.make()
            result = worker.run(run_request(self._bases.artifact), own)
            own.remove()
            assert result.status == 0, result.stderr
            self._expected = json.loads(result.stdout)["tokens"]
        return self._expected

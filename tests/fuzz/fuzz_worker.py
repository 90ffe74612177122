"""Runs cases in the fork server, and says what each one did apart from its answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fuzz_scratch import Scratch

LARGEST_MESSAGE = 20_000  # bytes of stderr, or of what is printed with an error
SECONDS, CPU_SECONDS = 120, 30  # of one case; the first is large, since other processes may have the cores
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Kind(StrEnum):
    """The outcomes of a case. All but the first two are failures."""

    RIGHT = "right"
    REFUSED = "refused"
    CRASH = "crash"
    HANG = "hang"
    TRACEBACK = "traceback"
    WRONG = "wrong answer"
    LEFTOVERS = "leftovers"
    MESSAGE = "bad message"


GOOD = (Kind.RIGHT, Kind.REFUSED)


@dataclass(frozen=True)
class Outcome:
    kind: Kind
    detail: str = ""

    @property
    def signature(self) -> str:
        """What failures of one cause have in common: the kind, and the detail without names and numbers."""
        return f"{self.kind}: {re.sub(r'[0-9]+|/[^ ]*', '#', self.detail)[:60]}"


RIGHT, REFUSED = Outcome(Kind.RIGHT), Outcome(Kind.REFUSED)


@dataclass(frozen=True)
class Request:
    """One call of a job. stdin: a file for standard input, None: nothing."""

    job: str
    arguments: dict[str, Any]
    stdin: Path | None = None


@dataclass(frozen=True)
class Result:
    """What a child did.

    status   exit code, or minus the signal
    made     new paths in the folder `output`
    strays   new or changed paths elsewhere
    """

    status: int
    hang: bool
    stdout: str
    stderr: str
    report: dict[str, Any] | None
    made: tuple[str, ...] = ()
    strays: tuple[str, ...] = field(default=())

    @property
    def value(self) -> Any:
        return (self.report or {}).get("value")

    @property
    def message(self) -> str:
        """What was said about an error: the message of the exception, or stderr."""
        error = (self.report or {}).get("error")
        return error["message"] if error else self.stderr


class Worker:
    """The fork server. It is started again where it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, request: Request, scratch: Scratch) -> Result:
        """Run a request in a child."""
        before = scratch.files()
        answer = self._ask(
            {
                "job": request.job,
                "arguments": request.arguments,
                "stdin": None if request.stdin is None else str(request.stdin),
                "scratch": str(scratch.root),
                "seconds": SECONDS,
                "cpu_seconds": CPU_SECONDS,
            }
        )
        after = scratch.files()
        output = scratch.relative(scratch.output) + os.sep
        new = [name for name, facts in after.items() if before.get(name) != facts]
        lost = [name for name in before if name not in after]
        report = json.loads(scratch.report.read_text()) if scratch.report.exists() else None
        return Result(
            status=answer["status"],
            hang=answer["hang"],
            stdout=_text(scratch.stdout),
            stderr=_text(scratch.stderr),
            report=report,
            made=tuple(name.removeprefix(output) for name in new if name.startswith(output)),
            strays=tuple(name for name in (*new, *lost) if not name.startswith(output)),
        )

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(timeout=60)
            self._process.stdout.close()
            self._process = None

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        return self._answer(process)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, str(Path(__file__).with_name("fuzz_server.py"))]
            # One thread: a child has none of the server's threads, and waits for them in vain.
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "LC_ALL": "C.UTF-8"}
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
            )
            self._answer(self._process)
        return self._process

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of the fuzzing tests ended with {process.wait()}; its stderr says why")
        answer: dict[str, Any] = json.loads(line)
        return answer


def failures(result: Result) -> Iterator[Outcome]:
    """What is wrong with a result, whatever the case was."""
    if result.hang:
        yield Outcome(Kind.HANG, f"ran for more than {CPU_SECONDS} s")
        return
    if result.status < 0 or result.report is None:
        yield Outcome(Kind.CRASH, f"status {result.status}: {result.stderr[-500:]}")
        return
    if result.status not in (0, 1, 2):
        error = result.report.get("error")
        last = f"{error['type']} in {error['where']}: {error['message'][:300]}" if error else _last_line(result.stderr)
        yield Outcome(Kind.TRACEBACK, f"exit {result.status}: {last}")
    if result.report["outside"]:
        yield Outcome(Kind.LEFTOVERS, f"tried to change {result.report['outside'][0]}")
    if result.strays:
        yield Outcome(Kind.LEFTOVERS, f"new or changed: {', '.join(result.strays[:3])}")
    if left := [name for name in result.made if ".partial" in name or (result.status == 2)]:
        yield Outcome(Kind.LEFTOVERS, f"left behind with exit {result.status}: {', '.join(left[:3])}")
    yield from _bad_messages(result)


def _bad_messages(result: Result) -> Iterator[Outcome]:
    said = result.message + (result.stdout if result.status else "")
    if len(said.encode("utf-8", "replace")) > LARGEST_MESSAGE:
        yield Outcome(Kind.MESSAGE, f"{len(said)} characters: {said[:200]}")
    if found := _STEERING.search(result.stderr):
        yield Outcome(Kind.MESSAGE, f"steers the terminal with {found[0]!r}: {result.stderr[:200]!r}")
    if result.status == 2:
        starts = [line for line in result.message.splitlines() if line.lower().startswith("error:")]
        if not result.message.strip() or ("error" not in (result.report or {}) and len(starts) != 1):
            yield Outcome(Kind.MESSAGE, f"{len(starts)} messages: {result.message[:200]!r}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""

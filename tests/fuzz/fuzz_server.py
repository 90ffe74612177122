"""A process that imports gptoss_export once and runs each case in a forked child, which may die.

    python fuzz_server.py

reads a request a line from stdin, and writes an answer a line to stdout, both JSON:

    {"job": "command", "arguments": {...}, "scratch": "/...", "seconds": 30}
    {"status": 0, "hang": false}

status is the exit code of the child, or minus the signal that killed it. What the job returned is in the file
control/report.json of the scratch folder, what it printed in control/stdout and control/stderr.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import select
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import fuzz_jobs
from fuzz_scratch import Scratch

MEMORY = 3 << 30  # bytes that a child may map beyond what the server has mapped
FILE = 512 << 20  # bytes of the largest file that a child may write
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that change files: the positions of the paths among their arguments.
_CHANGES = {
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
}


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    fuzz_jobs.import_everything()
    gc.collect()
    gc.freeze()  # so that a collection in a child is quick
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    while line := sys.stdin.readline():
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    child = os.fork()
    if child == 0:
        _run(request)
    descriptor = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([descriptor], [], [], request["seconds"])
        _kill(child)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(status)
    return {"status": code, "hang": not ended or code == -signal.SIGXCPU}


def _kill(child: int) -> None:
    """End the child, and what it started, which has its process group."""
    os.kill(child, signal.SIGKILL)  # it may not have its process group yet
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def _run(request: dict[str, Any]) -> None:
    """The child: never returns."""
    code, report = 0, {}
    try:
        scratch = Scratch(Path(request["scratch"]))
        outside = _enter(scratch, request)
        try:
            report = {"value": fuzz_jobs.JOBS[request["job"]](**request["arguments"])}
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException as error:
            code = 2 if fuzz_jobs.is_refusal(error) else 70
            frames = traceback.extract_tb(error.__traceback__)
            where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
            report = {"error": {"type": type(error).__name__, "message": str(error), "where": where}}
            if code == 70:
                traceback.print_exc()
        gc.collect()  # a loaded package removes its temporary folder
        atexit._run_exitfuncs()
        report["outside"] = list(outside)
        sys.stdout.flush()
        sys.stderr.flush()
        scratch.report.write_text(json.dumps(report), encoding="utf-8")
    finally:
        os._exit(code)  # the end of a process with torch takes longer than a case


def _enter(scratch: Scratch, request: dict[str, Any]) -> list[str]:
    """Limit this process to the scratch folder. Returns the list of paths outside of it that it tries to change."""
    os.setsid()
    source = os.open(request.get("stdin") or os.devnull, os.O_RDONLY)
    os.dup2(source, 0)
    for descriptor, path in (1, scratch.stdout), (2, scratch.stderr):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_seconds"], request["cpu_seconds"] + 5))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGESIZE") + MEMORY, resource.RLIM_INFINITY))
    os.environ.update(scratch.environment())
    tempfile.tempdir = None
    os.chdir(scratch.output)
    outside: list[str] = []
    allowed = os.path.realpath(scratch.root)

    def changes_outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor that is open already
        real = os.path.realpath(os.fsdecode(path))
        return not real.startswith(f"{allowed}/") and real not in (os.devnull, "/dev/tty")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & _WRITES) if isinstance(flags, int) else any(c in (mode or "") for c in "wax+")
            paths = [path] if writes else []
        else:
            paths = [arguments[index] for index in _CHANGES.get(event, ())]
        for path in paths:
            if changes_outside(path):
                outside.append(f"{event} {os.fsdecode(path)[:200]}")
                raise PermissionError(1, "fuzzing: outside of the scratch folder", os.fsdecode(path))

    sys.addaudithook(audit)
    return outside


if __name__ == "__main__":
    serve()

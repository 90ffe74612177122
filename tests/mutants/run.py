"""Which wrong programs do the tests let through? Puts one fault at a time into a copy of the project and runs tests.

    python tests/mutants/run.py                   all mutations: about half an hour of two cores
    python tests/mutants/run.py --only 'model/*'  those of a name; may be repeated
    python tests/mutants/run.py --commit HEAD     the files of a commit, not those of the working tree

A mutation is caught where one of its tests fails. Where none does, a wider set of tests is run. First all of these
tests run without a fault. The exit code is 1 where less than 95 % are caught, and 2 where the list is wrong or a test
fails without a fault. The working tree is left alone.
"""

from __future__ import annotations

import argparse
import compileall
import fnmatch
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from py_compile import PycInvalidationMode

from mutation_list import ROOT, Mutation, read_mutations

NEEDED = 0.95  # of all mutations are caught
LIMIT = 900.0  # seconds that the tests of one mutation may take; a program that hangs is caught too
PASSED, FAILED = 0, 1  # exit codes of pytest


@dataclass
class Run:
    """One run of pytest, which is a process of its own."""

    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def code(self, limit: float = LIMIT) -> int | None:
        """The exit code, None while it runs. A run past the limit in seconds is ended and counts as failed."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if self.seconds < limit:
            return None
        self.end()
        return FAILED

    def end(self) -> None:
        """Kill it and what it started."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def failed_tests(self) -> list[str]:
        """The tests that failed, as far as pytest said so."""
        return re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", self.log.read_text(errors="replace"), re.MULTILINE)


class Place:
    """A copy of the project in which one run of pytest at a time takes place."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared = folder, shared

    def start(self, tests: Sequence[str], rebuild: bool = False, mutated: bool = True) -> Run:
        """Run tests, up to the first failure where there is a fault, in a process that has the heavy packages imported
        already: those of this process."""
        log = self.folder.with_suffix(".log")
        pid = os.fork()
        if pid:
            return Run(pid, log)
        try:
            os.setpgid(0, 0)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(stream, number)
            paths = [str(self.folder / name) for name in (".", "plugins", "tests", "tests/mutants")]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # before the installed project
            os.environ |= {"SHARED_ARTIFACTS": str(self.shared), "MAKE_SHARED_ARTIFACTS": str(int(not mutated))}
            sys.path[:0] = paths
            os.chdir(self.folder)
            import pytest

            options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=short"]
            options += [] if rebuild else ["-p", "shared_artifacts"]
            options += ["-x"] if mutated else []
            code = int(pytest.main([*options, f"--basetemp={self.folder}.tmp", *tests]))
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
        finally:  # whatever happens, this process must not go on as its parent
            os._exit(70)

    def mutate(self, mutation: Mutation) -> None:
        path = self.folder / mutation.file
        path.write_text(mutation.apply(path.read_text(encoding="utf-8")), encoding="utf-8")

    def restore(self, mutation: Mutation, root: Path) -> None:
        shutil.copyfile(root / mutation.file, self.folder / mutation.file)


def copy_project(folder: Path, commit: str | None) -> None:
    """The files of a commit, or those of the working tree that git does not ignore."""
    folder.mkdir()
    if commit is not None:
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive)
    else:
        command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
    # Bytecode that is compared by hash: a fault may have the size and the time of the file that it replaces.
    mode = PycInvalidationMode.CHECKED_HASH
    for name in ("gptoss_export", "plugins"):
        compileall.compile_dir(folder / name, quiet=1, invalidation_mode=mode)


def import_packages() -> None:
    """Import what nearly every test needs, once: the runs of pytest are forks of this process. Nothing of the project,
    nothing that starts threads, and not Triton, whose interpreter is switched on before it is imported."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy starts threads as it is imported, which a fork does not have
    for name in ("torch", "transformers.models.gpt_oss.modeling_gpt_oss", "hypothesis", "safetensors.torch", "onnx"):
        try:
            __import__(name)
        except ImportError:  # the tests that need it say so
            print(f"note: {name} is not installed")


def run_without_fault(place: Place, mutations: Sequence[Mutation]) -> list[str] | None:
    """Run all tests of these mutations where nothing is wrong; the tests that fail, None where pytest does not run.

    It makes the shared artifacts, too.
    """
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    run = place.start(tests, mutated=False)
    try:
        while (code := run.code(limit=math.inf)) is None:
            time.sleep(0.1)
    except KeyboardInterrupt:
        run.end()
        raise
    lines = run.log.read_text(errors="replace").strip().splitlines()
    print(f"without a fault: {lines[-1] if lines else 'no output'}", flush=True)
    if code == PASSED:
        return []
    print("\n".join(lines[-60:]), flush=True)
    return run.failed_tests() if code == FAILED else None


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of the last change of every file of artifacts and checkpoints."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file() and "lock" not in path.suffix}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def uses(mutation: Mutation, test: str) -> bool:
    """Whether a test, by pytest's name, is one of the mutation's."""
    return any(test == own or test.startswith((f"{own}[", f"{own}::", f"{own}/")) for own in mutation.tests)


class Score:
    """What became of the mutations so far."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.caught: list[Mutation] = []
        self.survived: list[Mutation] = []
        self.broken: list[Mutation] = []

    def add(self, mutation: Mutation, outcome: str, seconds: float, detail: str) -> None:
        getattr(self, outcome).append(mutation)
        done = len(self.caught) + len(self.survived) + len(self.broken)
        print(f"{done:3}/{self.total}  {outcome:8}  {mutation!s:55} {seconds:6.1f} s  {detail}", flush=True)

    def summary(self) -> int:
        """Print the counts; the exit code."""
        judged = len(self.caught) + len(self.survived)
        share = len(self.caught) / judged if judged else 0.0
        print(f"\n{judged} of {self.total} mutations: {len(self.caught)} caught, {len(self.survived)} survived", end="")
        print(f", {share:.1%} caught (needed: {NEEDED:.0%})")
        for mutation in self.survived:
            print(f"survived: {mutation}: {mutation.breaks}")
        for mutation in self.broken:
            print(f"not judged, see above: {mutation}")
        return 2 if self.broken else 1 if share < NEEDED or judged < self.total else 0


def judge(mutations: Sequence[Mutation], places: Sequence[Place], original: Path, score: Score) -> None:
    """Run the tests of each mutation, one in each place at a time."""
    waiting = list(mutations)
    artifacts = files_of(places[0].shared)
    running: dict[int, tuple[Mutation, Run, bool, float]] = {}  # by place; whether the wider set runs, seconds before

    def ended(index: int, code: int) -> None:
        mutation, run, wide, before = running.pop(index)
        if code == PASSED and not wide:
            running[index] = mutation, places[index].start(mutation.wider, mutation.rebuild), True, run.seconds
            return
        places[index].restore(mutation, original)
        if files_of(places[index].shared) != artifacts:
            raise SystemExit(f"{mutation}: its tests have changed the artifacts that all tests share; stopped")
        seconds = before + run.seconds
        if code < 0:
            score.add(mutation, "caught", seconds, f"the tests' process ended by signal {-code}")
        elif code == FAILED:
            failed = [*run.failed_tests(), "took too long"][0]
            score.add(mutation, "caught", seconds, failed + (" (the wider set)" if wide else ""))
        elif code == PASSED:
            score.add(mutation, "survived", seconds, mutation.breaks)
        else:
            print("\n".join(run.log.read_text(errors="replace").splitlines()[-30:]))
            score.add(mutation, "broken", seconds, f"pytest ended with {code}")

    try:
        while waiting or running:
            for index, place in enumerate(places):
                if index not in running and waiting:
                    mutation = waiting.pop(0)
                    place.mutate(mutation)
                    running[index] = mutation, place.start(mutation.tests, mutation.rebuild), False, 0.0
                elif index in running and (code := running[index][1].code()) is not None:
                    ended(index, code)
            time.sleep(0.05)
    finally:
        for _, run, _, _ in running.values():
            run.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="mutations whose part and name are like this, such as model/yarn* or */*eps*",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutations at a time, 1 without it")
    parser.add_argument("--commit", help="mutate the files of this commit")
    parser.add_argument("--list", action="store_true", help="print the mutations and run nothing")
    options = parser.parse_args()
    mutations = [
        mutation
        for mutation in read_mutations()
        if options.only is None or any(fnmatch.fnmatch(str(mutation), name) for name in options.only)
    ]
    if options.list:
        for mutation in mutations:
            print(f"{mutation!s:55} {mutation.file}: {mutation.breaks}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)  # what runs is ended, the temporary folder removed
    score = Score(len(mutations))
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        root = Path(name)
        copy_project(root / "original", options.commit)
        problems = [problem for mutation in mutations for problem in mutation.problems(root / "original")]
        if problems or not mutations:
            print("\n".join(problems or ["no mutation has such a name"]))
            return 2
        (root / "shared").mkdir()
        places = []
        for number in range(max(1, options.jobs)):
            shutil.copytree(root / "original", root / f"place-{number}")
            places.append(Place(root / f"place-{number}", root / "shared"))
        import_packages()
        try:
            failed = run_without_fault(places[0], mutations)
            if failed is None:
                return 2
            for mutation in mutations:
                if wrong := [test for test in failed if uses(mutation, test)]:
                    score.add(mutation, "broken", 0.0, f"fails without a fault: {wrong[0]}")
            judge(
                [mutation for mutation in mutations if mutation not in score.broken], places, root / "original", score
            )
        except KeyboardInterrupt:
            print("interrupted")
    return score.summary()


if __name__ == "__main__":
    sys.exit(main())

"""Changed inputs of every kind: each is refused with one message, or the answer is right. Nothing else may happen.

Here are a few hundred cases, always the same. `make fuzz` draws 10,000 others and prints how they ended
(docs/reliability.md). To run a failing example again, give the blob that hypothesis prints:

    GPTOSS_EXPORT_FUZZ_BLOB='6.170.17:AXicY2...' python -m pytest tests/fuzz/test_fuzz.py -k packages
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fuzz_checkpoints import Checkpoints
from fuzz_commands import Commands
from fuzz_machine import refusal
from fuzz_manifests import ForgedManifests, RunManifests, ShownManifests
from fuzz_packages import Packages
from fuzz_scratch import Scratch
from fuzz_settings import Schedules, Tokenizers, TunedConfigs
from fuzz_signatures import SignedArtifacts
from fuzz_surface import Bases, Surface, run_case
from fuzz_worker import GOOD, RIGHT, Worker
from hypothesis import HealthCheck, Phase, given, reproduce_failure, settings
from hypothesis.database import DirectoryBasedExampleDatabase

IN_CI = 300
CASES = int(os.environ.get("GPTOSS_EXPORT_FUZZ_CASES", IN_CI))
BLOB = os.environ.get("GPTOSS_EXPORT_FUZZ_BLOB")
COUNTS = os.environ.get("GPTOSS_EXPORT_FUZZ_COUNTS")  # a folder for the outcomes of each surface, and its failures
SURFACES: tuple[type[Surface[Any]], ...] = (
    ShownManifests,
    RunManifests,
    ForgedManifests,
    Packages,
    Checkpoints,
    Tokenizers,
    Schedules,
    TunedConfigs,
    SignedArtifacts,
    Commands,
)
SHARES = sum(surface.share for surface in SURFACES)

if why := refusal():
    pytest.skip(why, allow_module_level=True)


@pytest.mark.parametrize("kind", SURFACES, ids=lambda kind: kind.name.replace(" ", "_"))
def test_changed_input(kind: type[Surface[Any]], bases: Bases, worker: Worker, tmp_path: Path) -> None:
    """`make fuzz` goes on after a failure: of each kind of failure it reports one, and counts the others."""
    cases = CASES * kind.share // SHARES
    surface = kind(bases)
    explorer = Explorer(surface, worker, tmp_path)
    assert run_case(surface, surface.unchanged(), Scratch(tmp_path / "unchanged"), worker) == RIGHT
    problems: list[str] = []
    if CASES == IN_CI or BLOB:
        explorer.explore(cases, in_ci=True)
    else:
        while sum(explorer.counts.values()) < cases and len(problems) < 50:
            try:
                explorer.explore(cases - sum(explorer.counts.values()), in_ci=False)
            except AssertionError as error:
                problems.append("\n".join([str(error), *getattr(error, "__notes__", [])]))
                explorer.reported.add(explorer.signature)
    if COUNTS:
        folder = Path(COUNTS)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind.name}.json").write_text(json.dumps(explorer.counts))
        (folder / f"{kind.name}.txt").write_text("\n\n".join(problems))
    assert not problems, "\n\n".join(problems)


class Explorer:
    """Draws cases of a surface and counts their outcomes. reported: failures that are counted and raise nothing."""

    def __init__(self, surface: Surface[Any], worker: Worker, folder: Path) -> None:
        self._surface, self._worker, self._folder = surface, worker, folder
        self._numbers = itertools.count()
        self.counts: Counter[str] = Counter()
        self.reported: set[str] = set()
        self.signature = ""

    def explore(self, cases: int, in_ci: bool) -> None:
        """Raise AssertionError with the smallest case that fails."""

        @settings(
            max_examples=cases,
            derandomize=in_ci,
            database=None if in_ci else DirectoryBasedExampleDatabase(".hypothesis/fuzz"),
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            phases=[phase for phase in Phase if phase != Phase.explain],
        )
        @given(self._surface.cases())
        def check(case: Any) -> None:
            scratch = Scratch(self._folder / f"case-{next(self._numbers)}")
            outcome = run_case(self._surface, case, scratch, self._worker)
            self.counts[outcome.kind] += 1
            if outcome.kind not in GOOD and outcome.signature not in self.reported:
                self.signature = outcome.signature
                raise AssertionError(f"{outcome.kind}: {outcome.detail}\n{case!r}")

        if BLOB:
            version, _, blob = BLOB.partition(":")
            check = reproduce_failure(version, blob.encode())(check)
        check()

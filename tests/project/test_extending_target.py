"""A target is one folder and one line: a target is added from outside of the package, and an artifact of it runs.

It compiles nothing: its code is a file that says so, and its programs run the decoder eagerly.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gptoss_export
from artifacts import SEED, TWO_LAYERS
from gptoss_export import BuildOptions, SamplingParams, targets
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.errors import ArtifactError, UsageError

OPTIONS = '''
"""The options of target eager."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    greeting: str = field(default="hello", metadata={"help": "What the code file says."})
'''

COMPILE = '''
"""Compiles nothing."""

from pathlib import Path

from gptoss_export.compiler.lower import unchanged_implementations
from gptoss_export.targets.base_compiler import Availability, Compilation, Compiler

from .options import Options


class Eager(Compiler):
    name = "eager"
    dtypes = {"cpu": ("float32",)}
    options_class = Options

    def available(self, device):
        return Availability(True, "always")

    def current_arch(self, device):
        return "any"

    def archs(self, device):
        return ("any",)

    def versions(self):
        return {"eager": "1"}

    def implementations(self, device, chooser):
        return unchanged_implementations()

    def start(self, job):
        return Names(job)


class Names(Compilation):
    """Writes the names of the programs."""

    def __init__(self, job):
        self.job, self.names = job, [job.options.greeting]

    def compile(self, program):
        self.names.append(program.name)

    def finish(self):
        (self.job.folder / "programs.txt").write_text("\\n".join(self.names))
        return [Path("programs.txt")]


COMPILER = Eager()
'''

LOAD = '''
"""Runs the decoder eagerly in place of compiled programs."""

from functools import partial

import torch

from gptoss_export.artifact.programs import Choose, Decode, Prefill, programs_of
from gptoss_export.model.choice import choose_adjusted, choose_drawn, choose_limited
from gptoss_export.model.decoder import GptOss
from gptoss_export.model.dtypes import torch_dtype
from gptoss_export.runtime.page_memory import allocate_pages
from gptoss_export.runtime.program_executor import ProgramExecutor
from gptoss_export.runtime.weights import load_weights
from gptoss_export.runtime.with_torch.tensors import TorchTensors
from gptoss_export.targets.base_loader import Loader, Table


class EagerLoader(Loader):
    def problems(self, manifest, folder):
        return [] if manifest.archs == ("any",) else ["arch: found another"]

    def load(self, manifest, folder, progress, settings):
        tensors = TorchTensors(torch.device("cpu"))
        with load_weights(manifest, folder, tensors) as weights:
            weights.wait()
        with torch.device("meta"):
            model = GptOss(manifest.model, torch_dtype(manifest.dtype)).requires_grad_(False)
        model.load_state_dict(weights.tensors, assign=True)
        names = (folder / "programs.txt").read_text().splitlines()[1:]
        kinds = programs_of(manifest.sizes, manifest.device)
        programs = {kind.name: partial(run, model, kind) for kind in kinds if kind.name in names}
        memory = allocate_pages(manifest, tensors, settings.kv_memory)
        return ProgramExecutor(manifest, folder, tensors, weights.tensors, programs, memory, choices={})

    def tables(self, manifest, folder):
        return [Table("greeting", ("text",), [((folder / "programs.txt").read_text().splitlines()[0],)])]


def run(model, kind, inputs):
    if isinstance(kind, Choose):
        functions = {"choose_drawn": choose_drawn, "choose_limited": choose_limited, "choose_adjusted": choose_adjusted}
        return list(functions[kind.name](*inputs))
    if not isinstance(kind, Decode | Prefill):
        return list(model.unembed(inputs[0]))
    tokens, positions, slots, full, sliding, *rest = inputs
    pages = {"full_attention": full, "sliding_attention": sliding}
    count = 2 * len(model.model.layers)
    caches = list(zip(rest[0:count:2], rest[1:count:2]))
    segments = len(slots)  # in a decode step, each row is one
    hidden = model.backbone(tokens.view(segments, -1), positions.view(segments, -1), slots, pages, caches)
    return [*model.unembed(hidden), positions + (positions >= 0)] if isinstance(kind, Decode) else [hidden]


LOADER = EagerLoader()
'''


@pytest.fixture
def eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a target whose folder is not in the package."""
    folder = tmp_path / "more_targets" / "eager"
    folder.mkdir(parents=True)
    for name, text in {"__init__": "", "options": OPTIONS, "compile": COMPILE, "load": LOAD}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(folder.parent)])
    registered = (*targets.TARGETS, "eager")
    monkeypatch.setattr(targets, "TARGETS", registered)
    for module in ("gptoss_export.loading", "gptoss_export.cli.build"):
        if module in sys.modules:  # which took the names of the targets when it was imported
            monkeypatch.setattr(f"{module}.TARGETS", registered)
    before = set(sys.modules)
    yield "eager"
    for name in set(sys.modules) - before:
        if name.startswith("gptoss_export.targets.eager"):
            del sys.modules[name]


def test_a_target_is_one_folder_and_one_line(eager: str, tmp_path: Path) -> None:
    checkpoint, artifact = tmp_path / "checkpoint", tmp_path / "artifact"
    write_synthetic(checkpoint, TWO_LAYERS, LAYOUTS["hf"], SEED, torch.device("cpu"))
    options = targets.options_class(eager)(greeting="good day")
    sizes: dict[str, Any] = {"max_batch": 2, "max_context": 200, "prefill_chunks": (16,)}
    manifest = gptoss_export.build(checkpoint, artifact, BuildOptions(eager, target_options=options, **sizes))
    assert (manifest.device, manifest.arch, manifest.dtype) == ("cpu", "any", "float32")
    assert manifest.target_options == {"greeting": "good day"} and manifest.versions["eager"] == "1"
    names = (artifact / "programs.txt").read_text().splitlines()
    assert names == [
        "good day",
        "decode_1",
        "decode_2",
        "prefill_16",
        "unembed_1",
        "unembed_64",
        "choose_drawn",
        "choose_limited",
        "choose_adjusted",
    ]

    runner = gptoss_export.load(artifact)
    report = gptoss_export.verify(artifact, checkpoint, "reference", [1, 40])
    assert report.passed
    prompts = [list(range(40)), [7, 8, 9]]
    together = runner.generate_batch(prompts, 12, [SamplingParams(), SamplingParams(0.8, seed=1)], stop_tokens=())
    greedy = runner.generate(prompts[0], 12, stop_tokens=())
    assert together[0].tokens == greedy.tokens and len(set(together[1].tokens)) > 1

    (artifact / "programs.txt").write_text("short")
    with pytest.raises(ArtifactError, match=r"programs\.txt: 5 bytes, expected"):
        gptoss_export.load(artifact)


def test_other_options_are_refused(eager: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found .*eager\.options\.Options, expected .*aoti\.options\.Options"):
        gptoss_export.build(
            tmp_path, tmp_path / "a", BuildOptions("aoti", target_options=targets.options_class(eager)())
        )

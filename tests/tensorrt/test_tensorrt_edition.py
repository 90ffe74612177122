"""Which TensorRT is used, what is said of a missing or broken one, and what needs the experimental option."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from types import SimpleNamespace

import pytest
from tensorrt_fakes import MANIFEST, SCHEDULE

from gptoss_export import BuildOptions
from gptoss_export.build_options import resolve
from gptoss_export.errors import ArtifactError, UsageError
from gptoss_export.progress import Progress
from gptoss_export.targets.base_compiler import compiler
from gptoss_export.targets.base_loader import loader
from gptoss_export.targets.tensorrt import compile as compile_module
from gptoss_export.targets.tensorrt.edition import FULL, INSTALL, RTX, edition_problem, installed_edition
from gptoss_export.targets.tensorrt.options import FULL_OPTION, Options
from gptoss_export.targets.tensorrt.schedule import save_schedule


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Says which TensorRTs are installed: a version for each, or the source of a module that is imported."""
    path = tmp_path / "path"
    path.mkdir()
    monkeypatch.syspath_prepend(path)

    def install(**found):
        for name in FULL, RTX:
            (path / f"{name}.py").unlink(missing_ok=True)
            if name not in found:
                monkeypatch.setitem(sys.modules, name, None)
                continue
            monkeypatch.delitem(sys.modules, name, raising=False)
            source = found[name]
            if source[0].isdigit():
                source = f"__version__ = {source!r}\nBuilder = None\n"
            (path / f"{name}.py").write_text(source)
            # Versions that replace each other within a second have the same cached bytecode.
            monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.invalidate_caches()

    yield install
    for name in FULL, RTX:
        sys.modules.pop(name, None)


def test_which_tensorrt(modules):
    modules(tensorrt="11.4.0", tensorrt_rtx="1.6.1.120")
    assert installed_edition().name == "tensorrt_rtx"  # as long as the other way has never run
    assert (
        installed_edition("tensorrt").version == "11.4.0" and installed_edition("tensorrt_rtx").version == "1.6.1.120"
    )
    assert edition_problem() is edition_problem("tensorrt") is None
    modules(tensorrt="11.4.0")
    assert installed_edition().name == "tensorrt" and installed_edition("tensorrt_rtx") is None
    assert edition_problem("tensorrt_rtx") == "tensorrt_rtx: not installed"
    modules(tensorrt="10.13.2")
    assert installed_edition() is None and installed_edition("tensorrt") is None
    assert "found version 10.13.2, expected 11 or later" in edition_problem()
    modules()
    assert installed_edition() is None
    assert edition_problem() == "tensorrt_rtx and tensorrt: not installed"


def test_a_folder_of_that_name_is_no_tensorrt(monkeypatch, tmp_path):
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, FULL, raising=False)
    assert edition_problem(FULL) == "tensorrt: not installed"
    monkeypatch.delitem(sys.modules, FULL)


BROKEN = [
    ("import tensorrt_libs_that_are_missing", "importing it fails .ModuleNotFoundError: .*tensorrt_libs_that"),
    ("raise ImportError('undefined symbol: x')", "importing it fails .ImportError: undefined symbol: x"),
    ("raise OSError('libnvinfer.so.11: cannot open')", "importing it fails .OSError: libnvinfer.so.11: cannot open"),
    ("raise AttributeError('no enum')", "importing it fails .AttributeError: no enum"),
    ("__version__ = '11.4.0'", "has no Builder"),
]


@pytest.mark.parametrize(("source", "message"), BROKEN)
def test_a_broken_tensorrt_is_not_missing(modules, tmp_path, source, message):
    """The reason is reported by whoever needs it, and another TensorRT does not take its place."""
    modules(tensorrt_rtx=source, tensorrt="11.4.0")
    assert installed_edition() is None and installed_edition("tensorrt_rtx") is None
    for problem in edition_problem(), edition_problem("tensorrt_rtx"):
        assert re.search(f"tensorrt_rtx: .*{message}", problem), problem
    available = compiler("tensorrt").available("cuda")
    assert not available.ready and re.search(message, available.detail), available
    save_schedule(SCHEDULE, tmp_path)
    problems = "\n".join(loader("tensorrt").problems(_manifest(tensorrt_rtx="1.6.1.120"), tmp_path))
    assert re.search(f"artifact built with 1.6.1.120, found tensorrt_rtx: .*{message}", problems), problems


def _manifest(**versions):
    return SimpleNamespace(**vars(MANIFEST), versions=versions)


def test_an_artifact_asks_for_the_tensorrt_that_built_it(modules, tmp_path):
    save_schedule(SCHEDULE, tmp_path)

    def problems(**versions):
        return "\n".join(loader("tensorrt").problems(_manifest(**versions), tmp_path))

    modules(tensorrt="11.4.0", tensorrt_rtx="1.6.1.120")
    assert "artifact built with" not in problems(tensorrt_rtx="1.6.1.120")
    assert "artifact built with" not in problems(tensorrt="11.4.0")
    assert "tensorrt: artifact built with 11.5, found tensorrt 11.4.0" in problems(tensorrt="11.5")
    modules(tensorrt_rtx="1.6.1.120")
    assert "tensorrt: artifact built with 11.4.0, found tensorrt_rtx 1.6.1.120" in problems(tensorrt="11.4.0")
    modules()
    with pytest.raises(ArtifactError, match=r"artifact built with 11\.4\.0, found tensorrt: not installed"):
        loader("tensorrt").load(_manifest(tensorrt="11.4.0"), tmp_path, Progress(), False)


def test_no_sm_90_for_versions_that_may_refuse_it(modules, monkeypatch):
    target = compiler("tensorrt")
    monkeypatch.setattr(type(target), "current_arch", lambda self, device: "sm_90")
    modules(tensorrt_rtx="1.7.1")
    assert "sm_90" not in target.archs("cuda") and "sm_89" in target.archs("cuda")
    modules(tensorrt_rtx="1.6.1.120")
    assert target.archs("cuda")[0] == "sm_90"
    modules(tensorrt="11.4.0")
    assert target.archs("cuda") == ("sm_90",)


def test_the_full_tensorrt_needs_its_option(modules, monkeypatch):
    target, never_run = compiler("tensorrt"), "never executed"
    monkeypatch.setattr(compile_module, "current_gpu_arch", lambda: "sm_90")
    options = BuildOptions("tensorrt", "cuda")
    modules(tensorrt="11.4.0")
    assert f"needs {FULL_OPTION}" in target.available("cuda").detail and never_run in target.available("cuda").detail
    with pytest.raises(UsageError, match=f"{FULL_OPTION}: needed to build with tensorrt 11.4.0 .*{never_run}"):
        resolve(options)
    experimental = dataclasses.replace(options, target_options=Options(experimental_full_tensorrt=True))
    _, settings, _ = resolve(experimental)
    assert settings.archs == ("sm_90",) and settings.to_json()["experimental_full_tensorrt"] is True
    modules(tensorrt="11.4.0", tensorrt_rtx="1.6.1.120")
    with pytest.raises(UsageError, match=f"{FULL_OPTION}: found tensorrt_rtx 1.6.1.120"):
        resolve(experimental)
    assert resolve(options)[1].archs == ("sm_90",)
    assert never_run not in target.available("cuda").detail and INSTALL[RTX] not in target.available("cuda").fix


def test_the_option_is_spelled_as_its_field():
    (field,) = dataclasses.fields(Options)
    assert f"--{field.name.replace('_', '-')}" == FULL_OPTION and field.default is False

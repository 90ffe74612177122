"""What import-linter cannot say: targets are named in their folders, modules are small, the public face is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gptoss_export
from gptoss_export import Engine, Runner
from gptoss_export.targets import TARGETS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gptoss_export"
MODULES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST = 400  # lines


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=name_of)
def test_modules_are_small_and_each_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def constants(tree: ast.Module) -> list[str]:
    """The string constants of a module that are no docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def test_targets_are_named_in_their_folders_alone() -> None:
    """And in the registry."""
    named = {
        (name_of(path), constant)
        for path in PACKAGE.rglob("*.py")
        for constant in constants(ast.parse(path.read_text()))
        if constant in TARGETS and path.parent.name != constant
    }
    assert named == {("gptoss_export/targets/__init__.py", name) for name in TARGETS}


def test_every_target_has_its_three_modules() -> None:
    folders = {path.parent.name for path in (PACKAGE / "targets").glob("*/__init__.py")}
    assert folders == set(TARGETS)
    for name in TARGETS:
        for module in ("compile.py", "load.py", "options.py"):
            assert (PACKAGE / "targets" / name / module).is_file(), f"{name}: {module}"


def test_the_core_never_names_the_kernel_package() -> None:
    assert [name_of(path) for path in PACKAGE.rglob("*.py") if "gptoss_plugins" in path.read_text()] == []


def test_test_modules_have_names_of_their_own() -> None:
    """There is no package of tests, so that pytest imports each module by its name alone."""
    names = [path.name for path in TESTS if path.name != "conftest.py"]  # which pytest tells apart
    assert sorted(set(names)) == sorted(names)


def test_public_surface() -> None:
    assert gptoss_export.__all__ == [
        "BuildOptions",
        "Engine",
        "Generation",
        "Runner",
        "SamplingParams",
        "Token",
        "TrainOptions",
        "TrainStep",
        "build",
        "load",
        "load_train_step",
        "sign",
        "verify",
    ]
    assert all(callable(getattr(gptoss_export, name)) for name in gptoss_export.__all__)
    assert set(dir(gptoss_export)) == {*gptoss_export.__all__, "__version__"}
    with pytest.raises(AttributeError, match="module 'gptoss_export' has no attribute 'compile'"):
        _ = gptoss_export.compile  # type: ignore[attr-defined]
    methods = {name for name in vars(Runner) if not name.startswith("_")}
    assert methods == {
        "length",
        "reset",
        "fork",
        "truncate",
        "prefill",
        "prefill_logits",
        "score",
        "decode",
        "generate",
        "generate_batch",
        "stream",
        "adapters",
        "load_adapter",
        "unload_adapter",
        "lend",
        "take_back",
    }
    offered = {name for name in vars(Engine) if not name.startswith("_")}
    assert offered == {"submit", "submit_all", "cancel", "generate", "stats", "step", "start", "driven", "close"}


HEAVY = ("torch", "numpy", "safetensors", "triton", "transformers", "click", "rich")


def imported_by(code: str) -> set[str]:
    """Which heavy packages, and which rooms of this project, a process imports that runs the code."""
    report = "import sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    return {name for name in names if name in HEAVY or name.startswith("gptoss_export.")}


def test_importing_the_package_imports_nothing() -> None:
    assert imported_by("import gptoss_export; gptoss_export.__version__") == {"gptoss_export._version"}


def test_reading_a_manifest_imports_no_torch() -> None:
    assert not imported_by("import gptoss_export.artifact.manifest") & set(HEAVY)


def test_loading_imports_nothing_that_builds() -> None:
    found = imported_by("import gptoss_export; gptoss_export.load; gptoss_export.Runner")
    building = ("compiler", "kernels", "checkpoint", "building", "build_options", "targets.base_compiler")
    assert not [name for name in found if name.removeprefix("gptoss_export.").startswith(building)]
    assert not found & {"triton", "transformers", "click", "rich"}

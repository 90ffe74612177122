"""Imports point one way, the runtime stays light, modules stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gptoss_export"

# Lower layers know nothing of higher ones. A module belongs to the longest name that it starts with.
LAYERS = [
    ["errors", "progress", "metric"],
    ["config", "folders", "driver"],
    ["mxfp4", "kv_cache", "kernel"],
    ["tables"],
    ["ops"],
    ["checkpoint", "manifest", "model"],
    ["export"],
    ["lower"],
    ["calls"],
    ["targets"],
    ["build", "runtime"],
    ["oracles", "bench", "tuning"],
    ["parity"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 420  # lines


def imports(path: Path) -> set[tuple[str, ...]]:
    """Modules of this package that a file imports, inside of functions too, but for annotations alone."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
    inside = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped and node.level:
            base = inside[: len(inside) - (node.level - 1)]
            module = tuple((node.module or "").split(".")) if node.module else ()
            for alias in node.names:
                found.add((*base, *module, alias.name) if not (base + module) else (*base, *module))
    return {name for name in found if name and name[0] in RANK}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] == "__init__":
        return
    for imported in imports(path):
        if imported[0] != parts[0]:
            assert RANK[imported[0]] < RANK[parts[0]], f"{parts[0]} imports {imported[0]}"


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.name)
def test_kernels_too(path):
    test_modules_are_small_and_every_one_has_a_story(path)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_small_and_every_one_has_a_story(path):
    assert len(path.read_text().splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_core_never_names_the_kernels():
    assert not [path for path in MODULES if "gptoss_plugins" in path.read_text()]


def test_no_branch_on_a_target_outside_of_its_file():
    for path in MODULES:
        if path.parent.name == "targets":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                values = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                assert not {"aoti", "tensorrt", "onnx"} & {value for value in values if isinstance(value, str)}, path


def test_public_surface():
    import gptoss_export.runtime as runtime

    assert runtime.__all__ == ["Generation", "Runner", "Sampling", "Token"]
    public = {name for name in vars(runtime.Runner) if not name.startswith("_")}
    assert public == {
        "load", "length", "reset", "truncate", "prefill", "prefill_logits", "score", "decode", "generate",
        "generate_batch", "stream",
    }  # fmt: skip

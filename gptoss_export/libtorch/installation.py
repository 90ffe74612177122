"""Finds the installed torch without importing it: its folder, its version, whether it has code for CUDA."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..compat.versions import SUPPORTED, is_supported
from ..errors import MachineError

_ADVICE = "pip install torch"


@dataclass(frozen=True)
class Installation:
    """An installed torch.

    folder   of the package
    version  such as 2.13.0+cpu
    cuda     the CUDA version that it was built for, None for a build without
    """

    folder: Path
    version: str
    cuda: str | None

    def library(self, name: str) -> Path:
        """The path of one of its libraries."""
        return self.folder / "lib" / name


def installation() -> Installation:
    """The torch that `import torch` would import. Raises MachineError where there is none, or none that is
    supported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(f"torch: not installed, expected {', '.join(SUPPORTED['torch'])}; {_ADVICE}")
    folder = Path(spec.submodule_search_locations[0])
    found = _constants(folder / "version.py")
    version, cuda = found.get("__version__"), found.get("cuda")
    if version is None or not is_supported("torch", version):
        raise MachineError(f"torch: found {version} in {folder}, expected {', '.join(SUPPORTED['torch'])}; {_ADVICE}")
    return Installation(folder, version, cuda)


def _constants(path: Path) -> dict[str, str | None]:
    """What a module of plain assignments says, without running it."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError) as error:
        raise MachineError(f"{path}: cannot be read ({error}); install torch again: {_ADVICE}") from None
    found: dict[str, str | None] = {}
    for line in body:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        value = getattr(line, "value", None)
        if targets and isinstance(targets[0], ast.Name) and isinstance(value, ast.Constant):
            found[targets[0].id] = value.value if isinstance(value.value, str) else None
    return found

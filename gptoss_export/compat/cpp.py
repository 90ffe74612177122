"""Small shared libraries, compiled from C++ source."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ..errors import BuildError


def compile_library(file: Path, source: str, *options: str) -> Path:
    """Compile C++ source to the shared library `file`; returns it. Raises BuildError with what the compiler says."""
    code = file.with_suffix(".cpp")
    code.write_text(source, encoding="utf-8")
    command = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", str(code), "-o", str(file), *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    code.unlink()
    if done.returncode:
        raise BuildError(f"the C++ compiler failed: {' '.join(command)}\n{done.stderr.strip()}")
    return file

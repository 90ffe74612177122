"""The description of compiled code: what it was compiled for, kept in the file of the code itself.

Compiled code checks no shapes. Run with other sizes than its own it reads and writes outside of its buffers. The
manifest is a file of its own and can be changed without the code. So each file of code carries a description, and a
target compares it with the manifest before it opens the code.

A description is a JSON object:

  format                 DESCRIPTION_FORMAT
  target, device, arch   what the code runs on; `arch` is one of the artifact's archs
  dtype, model, sizes, target_options   as in the manifest
  programs               name -> {"inputs": [...], "outputs": [...]}, as in the manifest

Imports no torch, so that an artifact can be read where there is none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, raise_all
from ..json_file import parse_object
from ..model.config import ModelConfig
from ..values import shown
from .calls import Signature
from .manifest import Manifest
from .programs import Sizes

DESCRIPTION_FORMAT = 1
_ABSENT = object()


def describe_code(
    *,
    target: str,
    target_options: Mapping[str, Any],
    device: str,
    arch: str,
    dtype: str,
    model: ModelConfig,
    sizes: Sizes,
    programs: Mapping[str, Signature],
) -> str:
    """The description of the code for one arch, as one line of JSON."""
    found = {
        "format": DESCRIPTION_FORMAT,
        "target": target,
        "target_options": dict(target_options),
        "device": device,
        "arch": arch,
        "dtype": dtype,
        "model": model.to_json(),
        "sizes": sizes.to_json(),
        "programs": {name: dataclasses.asdict(signature) for name, signature in programs.items()},
    }
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def check_description(manifest: Manifest, arch: str, found: str | bytes | None, file: Path) -> None:
    """Compare the description in `file`, the code for `arch`, with the manifest. `found` is None where it has none.

    Raises ArtifactError naming each value that differs.
    """
    advice = "build the artifact again"
    if found is None:
        raise ArtifactError(f"{file}: does not say what it was compiled for; {advice}")
    data = found.encode() if isinstance(found, str) else found
    described = parse_object(data, ArtifactError, subject=f"{file}: its description", advice=advice)
    expected = describe_code(
        target=manifest.target,
        target_options=manifest.target_options,
        device=manifest.device,
        arch=arch,
        dtype=manifest.dtype,
        model=manifest.model,
        sizes=manifest.sizes,
        programs=manifest.programs,
    )
    heading = f"{file}: was compiled for something else than manifest.json says; {advice}"
    problems = sorted(_differences("", described, json.loads(expected)), key=lambda line: line.startswith("programs"))
    raise_all(ArtifactError, heading, problems)  # the programs last, since their shapes follow from the rest


def _differences(path: str, found: Any, expected: Any) -> Iterator[str]:
    """One line for each value that differs, named by its path, such as `sizes.max_context`."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            inner = f"{path}.{key}" if path else key
            yield from _differences(inner, found.get(key, _ABSENT), expected.get(key, _ABSENT))
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from _differences(f"{path}[{index}]", *pair)
    elif found != expected or isinstance(found, bool) != isinstance(expected, bool):
        yield f"{path}: the code says {_shown(found)}, the manifest {_shown(expected)}"


def _shown(value: Any) -> str:
    return "nothing" if value is _ABSENT else shown(value)

"""Finds the kernels that installed packages offer, by entry point.

A package names a mapping from op name to `Kernel` in the entry point group `gptoss_export.kernels`, and the folder of
its tuned configs in `gptoss_export.tuned_configs`. Nothing here imports a kernel package by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from ..compat.versions import distance, installed
from ..errors import LoweringError, UsageError, raise_all
from ..model.ops import OPS
from .kernel import Kernel
from .tuned_configs import TunedConfigs, read_tuned_configs

KERNELS = "gptoss_export.kernels"
TUNED_CONFIGS = "gptoss_export.tuned_configs"


def kernels() -> Mapping[str, Kernel]:
    """The kernels of all installed packages, by op. An op may have none: its reference serves.

    Raises LoweringError where no package offers any, where one cannot be imported, where two offer kernels for one
    op, and for kernels of an op that does not exist."""
    found: dict[str, Kernel] = {}
    offered_by: dict[str, str] = {}
    problems: list[str] = []
    for entry in entry_points(group=KERNELS):
        try:
            offered = entry.load()
        except (ImportError, AttributeError) as error:
            problems.append(f"the kernels of {_package(entry)} cannot be imported: {error}")
            continue
        for name, kernel in offered.items():
            if name not in OPS:
                problems.append(f"{name}: offered by {_package(entry)}, expected one of {', '.join(OPS)}")
            elif name in found:
                problems.append(
                    f"{name}: offered by {offered_by[name]} and by {_package(entry)}; uninstall one of the packages"
                )
            else:
                found[name], offered_by[name] = kernel, _package(entry)
    raise_all(LoweringError, "kernels that cannot be used", problems)
    if not found:
        raise LoweringError(
            f"no installed package offers kernels (entry point group {KERNELS}); reinstall gptoss-export"
        )
    return found


def shipped_tuned_configs() -> tuple[TunedConfigs, ...]:
    """The tuned configs that installed packages bring. Those measured with the nearest Triton version come first, since
    compilers differ in what they make fast.

    Raises UsageError for a package whose folder is not there.
    """
    folders = [_folder(entry) for entry in entry_points(group=TUNED_CONFIGS)]
    configs = [read_tuned_configs(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    here = installed("triton")
    if here is None:
        return tuple(configs)
    return tuple(sorted(configs, key=lambda item: distance(item.versions.get("triton", ""), here)))


def _folder(entry: EntryPoint) -> Path:
    try:
        folder = Path(entry.load())
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the tuned configs of {_package(entry)} cannot be found: {error}; reinstall it") from error
    if not folder.is_dir():
        raise UsageError(f"the tuned configs of {_package(entry)}: {folder} is no folder; reinstall it")
    return folder


def _package(entry: EntryPoint) -> str:
    return f"package {entry.dist.name}" if entry.dist is not None else f"entry point {entry.name} = {entry.value}"

"""A config space of two parts and tuned configs for it, which several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from gptoss_export.kernels.launch_config import ConfigSpace
from gptoss_export.kernels.tuned_configs import TunedConfig, TunedConfigs


class Numbers(NamedTuple):
    rows: int
    warps: int


SHAPE = {"tokens": 4, "hidden": 96, "dtype": "bfloat16"}
SPACE = ConfigSpace(
    name="product",
    shape=SHAPE,
    scaled=("tokens",),
    default={"first": Numbers(4, 2), "second": Numbers(1, 1)},
    options={"first": {"rows": (1, 2, 4, 8), "warps": (1, 2, 4)}, "second": {"rows": (1, 2, 4)}},
)
OWN = Path("own.json")


def entry(tokens: Any = 4, rows: int = 8, **shape: Any) -> TunedConfig:
    config = {"first": {"rows": rows, "warps": 1}, "second": {"rows": 1, "warps": 1}}
    return TunedConfig("product", SHAPE | {"tokens": tokens} | shape, config, us=1.0, default_us=2.0)


def tuned(*entries: TunedConfig, arch: str = "sm_90") -> TunedConfigs:
    return TunedConfigs(arch, "NVIDIA H200", {"triton": "3.6.0"}, entries, OWN)

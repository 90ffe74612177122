"""Ray is imported once, before any test module: its import warns of what its own modules use."""

from __future__ import annotations

import warnings
from contextlib import suppress

with warnings.catch_warnings(), suppress(ImportError):
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401

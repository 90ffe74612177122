"""matplotlib: whether it is there, and its settings while a picture is drawn."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .palette import Colour

FONT_SIZE = 11.5  # units of a picture; a unit is a pixel where the picture has its own size

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text, which can be selected and searched
    "svg.hashsalt": "gptoss-export",  # the same facts give the same file
    "text.parse_math": False,  # names are text, whatever is in them
    "font.family": ["DejaVu Sans"],  # comes with matplotlib; the page's own font is not wider
    "font.size": FONT_SIZE,
    "text.color": Colour.INK.value,
    "axes.edgecolor": Colour.MUTED.value,
    "axes.labelcolor": Colour.MUTED.value,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": Colour.GRID.value,
    "grid.linewidth": 0.8,
    "xtick.color": Colour.MUTED.value,
    "ytick.color": Colour.MUTED.value,
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


def check_library(option: str, file: Path | None) -> None:
    """Raise UsageError where a page is asked for and matplotlib is not installed. Does not import it."""
    if file is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"{option} {file}: matplotlib, which draws the pictures, is not installed; "
            "run: pip install 'gptoss-export[pictures]'"
        )


@contextmanager
def library_settings() -> Iterator[None]:
    """Draw with the settings of the pages, whatever matplotlibrc says. The old settings come back at the end."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # the reader's fonts may have it
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(_SETTINGS)
        yield

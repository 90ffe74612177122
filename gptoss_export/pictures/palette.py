"""The colours of the pictures, by what they mean. The page has a value of each for light and for dark.

A picture is drawn in these values. In the SVG a value becomes the variable of its name, which skeleton.css sets to the
colour of the reader's theme.
"""

from __future__ import annotations

from enum import StrEnum


class Colour(StrEnum):
    """ink       text
    muted     axes, secondary text
    grid      lines of a grid
    paper     the background, where it covers something
    blue      what was measured, the first of several parts
    orange    the other artifact, the second part
    purple    near ties, the third part
    teal      the fourth part
    grey      what serves as a reference, the rest
    red       what failed
    """

    INK = "#1b1f24"
    MUTED = "#57606a"
    GRID = "#dfe3e8"
    PAPER = "#fdfdfe"
    BLUE = "#2a64c5"
    ORANGE = "#b45f06"
    PURPLE = "#8a4fd3"
    TEAL = "#0f7b72"
    GREY = "#6a737d"
    RED = "#c62828"

    @property
    def variable(self) -> str:
        """The name of the variable in the page's style."""
        return f"--{self.name.lower()}"

"""The SVG that matplotlib writes, as a part of a page.

A page holds many pictures. So names inside of a picture get a prefix, colours become variables of the page, and what
belongs to a file of its own is left out: the document type, metadata, the style for all elements.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from .palette import Colour

_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONTS = re.compile(r"font-family: [^;]*;? ?")
_SHORT_FONT = re.compile(r"font: (?P<weight>\d+ )?(?P<size>[\d.]+px)[^;]*")  # matplotlib before 3.10
_REFERENCE = re.compile(r"#([\w.-]+)")
_ROUNDED = {"d", "x", "y", "transform", "points", "width", "height", "viewBox"}


def inline(svg: str, prefix: str, description: str) -> str:
    """An <svg> element that has the size of its container.

    prefix       of the names in it; no other picture of the page has it
    description  what a reader hears who does not see the picture
    """
    root = ElementTree.fromstring(svg)
    _drop(root, {"metadata", "style"})
    elements = list(root.iter())
    used = {name for element in elements for value in element.attrib.values() for name in _references(value)}
    for element in elements:
        element.tag = _local(element.tag)
        element.text, element.tail = (element.text if element.tag == "text" else None), None
        attributes = {_local(name): value for name, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        values = {name: _value(name, value, prefix) for name, value in attributes.items()}
        element.attrib.update({name: value for name, value in values.items() if value})
    _flatten(root)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": description})
    return ElementTree.tostring(root, encoding="unicode")


def _drop(element: ElementTree.Element, tags: set[str]) -> None:
    for child in list(element):
        if _local(child.tag) in tags:
            element.remove(child)
        else:
            _drop(child, tags)


def _flatten(element: ElementTree.Element) -> None:
    """Make the element small: no groups that say nothing, and the style of many equal marks said once."""
    for child in element:
        _flatten(child)
    element[:] = [inner for child in element for inner in (child if child.tag == "g" and not child.attrib else [child])]
    marks = [child for child in element if child.tag == "use"]
    styles = {mark.attrib.get("style", "") for mark in marks}
    if len(marks) > 1 and len(marks) == len(element) and len(styles) == 1:
        for mark in marks:
            mark.attrib.pop("style", None)
        element.attrib["style"] = styles.pop()


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _references(value: str) -> list[str]:
    """The names that the value of an attribute refers to."""
    return _REFERENCE.findall(value) if value.startswith(("#", "url(#")) else []


def _value(name: str, value: str, prefix: str) -> str:
    """The value of an attribute in the page; empty where the attribute says nothing."""
    if name == "id":
        return prefix + value
    if _references(value):
        return _REFERENCE.sub(rf"#{prefix}\1", value)
    if name == "transform" and value.startswith("rotate(-0 "):
        return ""
    if name in _ROUNDED:
        return " ".join(_NUMBER.sub(_rounded, value).split())
    if name == "style":
        value = _SHORT_FONT.sub(lambda found: _font(found["weight"], found["size"]), _FONTS.sub("", value))
        for colour in Colour:
            value = value.replace(colour.value, f"var({colour.variable})")
    return value


def _font(weight: str | None, size: str) -> str:
    return f"font-weight: {weight.strip()}; font-size: {size}" if weight else f"font-size: {size}"


def _rounded(found: re.Match[str]) -> str:
    """Two digits are enough: a unit is about a pixel."""
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")

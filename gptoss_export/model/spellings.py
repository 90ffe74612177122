"""Settings of config.json that have several spellings. Where two differ, no program can know which one is meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..values import shown

# transformers 5 writes rope_parameters, which holds rope_theta. Version 4 wrote rope_scaling and, outside of it,
# rope_theta. The first of them that holds an object is read.
ROPE_SECTIONS = ("rope_parameters", "rope_scaling")

# Keys that mean one setting: those of the whole file, then those of a section above.
_SPELLINGS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("num_local_experts", "num_experts"), ()),
    (("num_experts_per_tok", "experts_per_token"), ()),
    (("rope_theta",), ("rope_theta",)),
    (("rope_scaling_factor",), ("factor",)),
    (("initial_context_length",), ("original_max_position_embeddings",)),
    (("rope_ntk_beta",), ("beta_fast",)),
    (("rope_ntk_alpha",), ("beta_slow",)),
    ((), ("rope_type", "type")),
)
_ABSENT = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}  # what an absent key of a section means


def contradictions(raw: dict[str, Any]) -> list[str]:
    """One line for each two spellings in a parsed config.json that have different values. null counts as absent."""
    sections = {name: raw[name] for name in ROPE_SECTIONS if isinstance(raw.get(name), dict)}
    problems: list[str] = []
    for outside, inside in _SPELLINGS:
        found = {key: raw[key] for key in outside if raw.get(key) is not None}
        for name, section in sections.items():
            found |= {f"{name}.{key}": section[key] for key in inside if section.get(key) is not None}
        problems += _differences(found)
    if len(sections) > 1:
        first, second = (_ABSENT | {k: v for k, v in section.items() if v is not None} for section in sections.values())
        compared = {key for _, inside in _SPELLINGS for key in inside if key in first and key in second}
        for key in sorted((first.keys() | second.keys()) - compared - {"rope_theta", "rope_type", "type"}):
            values = (section.get(key) for section in (first, second))
            problems += _differences({f"{name}.{key}": value for name, value in zip(sections, values, strict=True)})
    return problems


def _differences(found: dict[str, Any]) -> Iterator[str]:
    (first, value), *others = found.items() or [("", None)]
    for key, other in others:
        if other != value:
            yield f"{first}: found {shown(value)}, but {key}: found {shown(other)}; expected one value"

"""What a caller asks for: the format of the final message, and the tools that can be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class JsonSchema:
    """A document that obeys a JSON schema.

    strict  whether a keyword or a format that cannot be enforced is an error. Otherwise it is ignored, `oneOf` means
            `anyOf`, and the rest of the schema is enforced
    field   what errors call it
    """

    schema: Mapping[str, Any]
    strict: bool = True
    field: str = "schema"


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object."""


Format = JsonSchema | JsonObject


@dataclass(frozen=True)
class CallableTool:
    """A function that the model can call.

    parameters  the JSON schema of its arguments, which are an object; None: it takes none
    strict      whether a call's arguments obey `parameters`. Otherwise they are any JSON object
    """

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

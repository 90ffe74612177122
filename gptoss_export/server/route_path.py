"""The path by which a request is answered."""

from __future__ import annotations

from starlette._utils import get_route_path
from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """The path of a request as routes compare it. scope["path"] also has a prefix, `root_path`, where the application
    is a part of another one, as with a route prefix of Ray Serve.

    It is the routes' own function, so that what is checked is what answers.
    """
    return get_route_path(scope)

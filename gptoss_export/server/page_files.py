"""The page at `/`: files of the package, read once."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from .errors import ApiError

_FOLDER = "page"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}
_HEADERS = {
    # No other page frames this one, and no file is taken for another type.
    "content-security-policy": "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class PageFiles:
    """The contents of the files by their names."""

    contents: dict[str, bytes]

    @classmethod
    def read(cls) -> PageFiles:
        """Those of the package."""
        folder = resources.files(__package__).joinpath(_FOLDER)
        files = [file for file in folder.iterdir() if PurePosixPath(file.name).suffix in _TYPES]
        return cls({file.name: file.read_bytes() for file in files})

    async def index(self, request: Request) -> Response:
        """The page."""
        return self._response(_INDEX)

    async def file(self, request: Request) -> Response:
        """One of its files."""
        return self._response(request.path_params["name"])

    def _response(self, name: str) -> Response:
        if name not in self.contents:
            raise ApiError(404, f"no file {name!r} here", code="not_found")
        kind = _TYPES[PurePosixPath(name).suffix]
        return Response(self.contents[name], headers={**_HEADERS, "content-type": kind})

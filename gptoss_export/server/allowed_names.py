"""The names and the web pages that an operator allows: whether a request can have them in its headers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import UsageError, raise_all

_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]+))?")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_PORTS = {"http": "80", "https": "443"}  # which browsers leave out


def check_names(hosts: Iterable[str], origins: Iterable[str] = (), host_option: str = "--allow-host") -> None:
    """Raise UsageError for names and origins that no request has.

    hosts        names of the server
    origins      of web pages; "*": all
    host_option  by which the operator gave the names
    """
    problems = [problem for origin in origins if (problem := _wrong_origin(origin)) is not None]
    problems += [
        f"{host_option} {host}: expected a name without a port, such as example.org"
        for host in hosts
        if not _HOST.fullmatch(host)
    ]
    raise_all(UsageError, "names cannot be used", problems)


def _wrong_origin(origin: str) -> str | None:
    """What is wrong with an origin; None where browsers send it so."""
    if origin == "*":
        return None
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return f"--allow-origin {origin}: expected a scheme and a name, such as https://example.org, or *"
    scheme, host, port = found[1].lower(), found[2].lower(), found[3]
    sent = f"{scheme}://{host}" if port in (None, _PORTS.get(scheme)) else f"{scheme}://{host}:{port}"
    return None if sent == origin else f"--allow-origin {origin}: expected {sent}, as browsers send it"

"""The versions of torch and Triton that this project supports. They stand here and nowhere else.

The project uses private names of both (the other modules of this package), so that a version counts as supported only
after the tests have passed with it. pyproject.toml bounds its dependencies by the same versions; a test compares the
two."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

SUPPORTED: dict[str, tuple[str, ...]] = {
    "torch": ("2.11", "2.12", "2.13", "2.14", "2.15"),
    "triton": ("3.6", "3.7", "3.8", "3.9"),
}


def minor(number: str) -> str:
    """The first two numbers of a version: "2.11.0+cu130" to "2.11"."""
    return ".".join(number.split(".")[:2])


def distance(first: str, second: str) -> int:
    """How many minor versions apart two versions are: 2 for "3.7.1" and "3.9.0". Another major version, and what is no
    version, is further away than any minor one."""
    try:
        (major, first_minor), (other, second_minor) = (map(int, minor(number).split(".")) for number in (first, second))
    except ValueError:
        return 1 << 20
    return abs(first_minor - second_minor) + abs(major - other) * (1 << 10)


def installed(package: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_supported(package: str, number: str) -> bool:
    return minor(number) in SUPPORTED[package]


def version_problem(package: str) -> str | None:
    """What is wrong with the installed version of torch or Triton, None where it is supported."""
    expected = f"expected {', '.join(SUPPORTED[package])}"
    found = installed(package)
    if found is None:
        return f"{package}: not installed, {expected}"
    if not is_supported(package, found):
        return f"{package}: found {found}, {expected}"
    return None

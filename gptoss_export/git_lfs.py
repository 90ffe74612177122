"""Pointers of Git LFS: small text files that stand for files that were not downloaded."""

from __future__ import annotations

POINTER = b"version https://git-lfs.github.com/spec/"
ADVICE = "install Git LFS and run `git lfs pull` in the checkpoint's folder"


def is_pointer(content: bytes) -> bool:
    """Whether a file with this content, or one that begins with it, is a pointer."""
    return content.startswith(POINTER)

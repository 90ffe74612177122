"""What can go wrong, by who has to fix it.

GptOssExportError        base; the message says what was found, what was expected and what to do
├── UsageError           an option or argument is wrong
├── CheckpointError      the checkpoint folder does not hold a gpt-oss model, or an adapter's folder no adapter of it
├── BuildError           the model cannot be compiled for this target on this machine
│   ├── LoweringError    an op has no implementation that the target accepts
│   └── CompatibilityError   torch or Triton lacks a private name that the build needs
├── ArtifactError        the artifact is damaged, incomplete or not made for this machine
├── RunError             a request does not fit the loaded artifact
│   ├── QueueFullError   too many requests wait; try again later
│   └── OutOfPagesError  the KV cache has no room for more tokens
└── MachineError         the machine has too little memory or disk, or cannot start another thread

The command line turns each of them into one message on stderr and exit code 2.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 8000  # characters of a message; what a file or another library says may be longer


def shortened(message: str) -> str:
    """A message of at most about `LONGEST` characters, without its middle: its beginning says what is wrong, its end
    what to do."""
    if len(message) <= LONGEST:
        return message
    half = LONGEST // 2
    return f"{message[:half]} [... {len(message) - 2 * half} characters left out ...] {message[-half:]}"


class GptOssExportError(Exception):
    """Base of every error that this project raises on purpose. Its message is `shortened`."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


class UsageError(GptOssExportError):
    """An option or argument is wrong."""


class CheckpointError(GptOssExportError):
    """The checkpoint folder does not hold a gpt-oss model, or the folder of an adapter no adapter of it."""


class BuildError(GptOssExportError):
    """The model cannot be compiled for this target on this machine."""


class LoweringError(BuildError):
    """An op has no implementation that the target accepts."""


class CompatibilityError(BuildError):
    """torch or Triton lacks a private name that the build needs."""


class ArtifactError(GptOssExportError):
    """The artifact is damaged, incomplete or not made for this machine."""


class RunError(GptOssExportError):
    """A request does not fit the loaded artifact."""


class QueueFullError(RunError):
    """Too many requests wait; try again later."""


class OutOfPagesError(RunError):
    """The KV cache has no room for more tokens."""


class CaptureError(RunError):
    """Work could not be captured into a CUDA graph. It can run as it is."""


class MachineError(GptOssExportError):
    """The machine has too little memory or disk, or cannot start another thread."""


LISTED = 20  # problems that one error lists; it counts those after them


def raise_all(kind: type[GptOssExportError], heading: str, problems: Iterable[str]) -> None:
    """Raise one `kind` naming the problems; do nothing where there is none.

    Checks collect what is wrong and end with this call, so that a user can fix everything at once. The first `LISTED`
    problems are listed, and the others are counted.
    """
    found = list(problems)
    if found:
        lines = [f"  - {problem}" for problem in found[:LISTED]]
        if len(found) > LISTED:
            lines.append(f"  - and {len(found) - LISTED} more")
        raise kind("\n".join([heading, *lines]))

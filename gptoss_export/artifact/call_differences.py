"""Where the call of a program in a manifest is not the one that the model and the sizes of the artifact give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .calls import Signature, TensorSpec


def signature_differences(name: str, found: Signature, expected: Signature) -> Iterator[str]:
    """Where the call of a program is not the expected one. Of many tensors with wrong sizes one line names the
    first."""
    yield from _differences(f"program {name}: input", found.inputs, expected.inputs)
    yield from _differences(f"program {name}: output", found.outputs, expected.outputs)


def _differences(label: str, found: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> Iterator[str]:
    for index in range(max(len(found), len(expected))):
        have = repr(found[index].name) if index < len(found) else "nothing"
        want = repr(expected[index].name) if index < len(expected) else "nothing"
        if have != want:
            yield f"{label} {index} is {have}, expected {want}"
            return
    wrong = [pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1]]
    if wrong:
        first, wanted = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        yield f"{label} {first.name}{more} is {first}, expected {wanted} by the model and the sizes of the artifact"

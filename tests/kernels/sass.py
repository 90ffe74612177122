"""Finds registers that are written while a product of sm_90 still reads them.

A product (HGMMA) whose left operand is in registers reads them after its instruction. They may be written again when
the warp has waited for the product (WARPGROUP.DEPBAR). Neither PTX nor its assembler keeps to that by itself.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from gptoss_export.compat.triton import ptxas_path

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?(.*?) *;")
_LABEL = re.compile(r"\s*(\.L_x_\w+):")
_BRANCH = re.compile(r"BRA.*`\((\.L_x_\w+)\)")
_PRODUCT = re.compile(r"HGMMA\S* R\d+, R(\d+)(?:\.reuse)?, gdesc")
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)")
_RESULT = re.compile(r"(\S+) +(?:U?P\w+, )*R(\d+)\b")
_WIDTHS = {".M88.4": 4, ".M88.2": 2, ".MT88.4": 4, ".MT88.2": 2}  # of LDSM
_NO_RESULT = ("ST", "LDGSTS", "ISETP", "FSETP", "HSETP", "PLOP3", "R2UR", "HGMMA", "BAR", "WARPGROUP")


def loops(cubin: bytes, folder: Path) -> list[list[str]]:
    """The instructions of each loop of a kernel."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    disassembler = Path(ptxas_path(90)).with_name("nvdisasm")
    text = subprocess.run([disassembler, "-c", file], capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    instructions: list[str] = []
    found = []
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := _INSTRUCTION.search(line):
            instructions.append(match[1])
            branch = _BRANCH.search(match[1])
            if branch and branch[1] in labels:
                found.append(instructions[labels[branch[1]] :])
    return found


def overwritten(loop: list[str]) -> list[str]:
    """The instructions of a loop, run twice, that write registers which a product may still read."""
    found = []
    open_group: set[int] = set()
    groups: list[set[int]] = []  # registers of the products that run, oldest first
    for instruction in [*loop, *loop]:
        if match := _PRODUCT.match(instruction):
            first = int(match[1])
            open_group |= set(range(first, first + 4))
        if instruction.startswith("HGMMA"):
            if "gsb0" in instruction:  # ends a group
                groups.append(open_group)
                open_group = set()
        elif match := _WAIT.match(instruction):
            groups = groups[max(0, len(groups) - int(match[1], 16)) :]
        elif _written(instruction) & open_group.union(*groups):
            found.append(instruction)
    return found


def _written(instruction: str) -> set[int]:
    match = _RESULT.match(instruction)
    if match is None or match[1].startswith(_NO_RESULT):
        return set()
    wide = next((count for ends, count in _WIDTHS.items() if match[1].endswith(ends)), 1)
    count = max(wide, 4 if ".128" in match[1] else 2 if ".64" in match[1] or ".WIDE" in match[1] else 1)
    return set(range(int(match[2]), int(match[2]) + count))

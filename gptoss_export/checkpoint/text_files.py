"""The files of a checkpoint that concern text: the tokenizer's, and the default stop tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from shutil import copyfile

from ..errors import CheckpointError, raise_all
from ..json_file import read_object
from ..machine_limits import writes
from ..model.config import ModelConfig, token_ids
from ..regular_file import NotRegularError, read_start

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    GENERATION_CONFIG,
)


def text_files(source: Path) -> list[Path]:
    """The names of those that the checkpoint has.

    Raises CheckpointError where something else than a file that can be read has one of these names.
    """
    found, problems = [], []
    for name in TOKENIZER_FILES:
        try:
            read_start(source / name, 1)
        except FileNotFoundError:
            if os.path.lexists(source / name):
                problems.append(f"{name}: found a link to nothing, expected a file")
        except OSError as problem:
            problems.append(f"{name}: cannot be read ({problem.strerror or problem})")
        except NotRegularError as problem:
            problems.append(f"{name}: {problem}")
        else:
            found.append(Path(name))
    raise_all(CheckpointError, f"{source}: files about text cannot be copied; replace or remove them", problems)
    return found


def copy_text_files(source: Path, folder: Path, names: Iterable[Path]) -> None:
    """Copy files of the checkpoint into the artifact. Raises OSError, which names the file."""
    for name in names:
        with writes(folder / name):
            copyfile(source / name, folder / name)


def default_stop_tokens(source: Path, config: ModelConfig) -> tuple[int, ...]:
    """The stop tokens that generation_config.json names; those of config.json where it names none.

    Raises CheckpointError where generation_config.json cannot be read, or names what is no token of the model.
    """
    path = source / GENERATION_CONFIG
    if not path.exists():
        return config.eos_token_ids
    value = read_object(path, CheckpointError).get("eos_token_id")
    try:
        return token_ids(value, config.vocab_size) or config.eos_token_ids
    except ValueError as problem:
        raise CheckpointError(f"{path}: eos_token_id: {problem}") from None

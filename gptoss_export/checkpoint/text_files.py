"""The files of a checkpoint that concern text: the tokenizer's, and the default stop tokens."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

from ..errors import CheckpointError
from ..json_file import read_object
from ..machine_limits import writes
from ..model.config import ModelConfig, token_ids

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    GENERATION_CONFIG,
)


def copy_text_files(source: Path, folder: Path) -> list[Path]:
    """Copy those that the checkpoint has; returns their names."""
    found = [Path(name) for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        with writes(folder / name):
            copyfile(source / name, folder / name)
    return found


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

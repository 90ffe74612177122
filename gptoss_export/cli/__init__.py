"""The command line: parses, calls, prints. Each command is a file of its own, imported when it is used."""

from __future__ import annotations

import importlib

import click

from .. import __version__

# name -> module of this package that holds `command`
COMMANDS = {
    "make-checkpoint": "make_checkpoint",
    "build": "build",
    "run": "run",
    "verify": "verify",
    "bench": "bench",
    "tune": "tune",
    "inspect": "inspect",
    "targets": "targets",
}


class Commands(click.Group):
    """Loads a command's module when it is asked for, so that `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f".{COMMANDS[name]}", __name__).command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gptoss-export")
def main() -> None:
    """Compile gpt-oss checkpoints ahead of time and run the artifacts."""

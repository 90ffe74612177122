"""The command line: parses, calls, prints. Each command is a file of its own, imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from .. import __version__
from .errors import end_with_os_error, plain_usage_errors
from .params import check_utf8
from .streams import ends_as_on_sigpipe, print_any_text

# name -> module of this package that holds `command`
COMMANDS = {
    "make-checkpoint": "make_checkpoint",
    "build": "build",
    "sign": "sign",
    "run": "run",
    "chat": "chat",
    "serve": "serve",
    "verify": "verify",
    "bench": "bench",
    "tune": "tune",
    "inspect": "inspect",
    "targets": "targets",
}


class Commands(click.Group):
    """Imports a command's module when it is asked for, so that `--help` stays quick."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Prepare the output streams, then parse and run."""
        print_any_text()
        with ends_as_on_sigpipe():
            try:
                return super().main(*args, **extra)
            except OSError as error:  # of --help; a command reports its own
                end_with_os_error(error)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse. click itself ends with 1 where a pipe is closed."""
        with ends_as_on_sigpipe(), plain_usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. click itself ends with 1 where a pipe is closed."""
        with ends_as_on_sigpipe(), plain_usage_errors():
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check every argument of every command before one of them is used: text and paths must be UTF-8."""
        check_utf8(args, ctx)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which a user meets the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, None where there is none."""
        if name not in COMMANDS:
            return None
        return importlib.import_module(f".{COMMANDS[name]}", __name__).command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gptoss-export")
def main() -> None:
    """Compile gpt-oss checkpoints ahead of time and run the artifacts.

    Results go to stdout, as tables or with --json as one JSON object. Progress and errors go to stderr.

    \b
    Exit codes:
      0      done
      1      a check failed: verify found a difference
      2      an option, an input or this machine is not what the command needs
      70     a bug in gptoss-export; the traceback is on stderr
      128+n  stopped by signal n: 130 by Ctrl-C, 141 by a closed pipe,
             143 by SIGTERM, 129 by SIGHUP
    """

"""A process that compiles programs for a build (compiling.py).

    python -m gptoss_export.compile_worker FD

FD is a socket. The first message is a WorkerSettings. Each further one is a ProgramTask, and is answered by the launch
configs that were chosen, or by the error. It ends when the build closes the socket.
"""

from __future__ import annotations

import signal
import sys
import traceback
from multiprocessing.connection import Connection

from .compiling import Chosen, ProgramTask, WorkerSettings, compile_program
from .errors import BuildError, GptOssExportError
from .targets.base_compiler import Compiler, compiler


def main(descriptor: int) -> None:
    """Serve a build until it closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the build, which stops its workers
    connection = Connection(descriptor)
    given: WorkerSettings = connection.recv()
    target = compiler(given.settings.target)
    while True:
        try:
            task: ProgramTask = connection.recv()
        except EOFError:
            return
        connection.send(_answer(target, given, task))


def _answer(target: Compiler, given: WorkerSettings, task: ProgramTask) -> Chosen | Exception:
    try:
        return compile_program(target, given, task)
    except (GptOssExportError, OSError) as error:
        return error
    except Exception as error:  # whatever it is may not survive the way to the build
        return BuildError(f"program {task.label}: {error}\n{traceback.format_exc()}")


if __name__ == "__main__":
    main(int(sys.argv[1]))

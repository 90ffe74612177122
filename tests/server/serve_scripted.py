"""A server of a scripted engine in a process of its own, for tests that send signals.

    python serve_scripted.py STEP_SECONDS DRAIN_SECONDS READ_SECONDS

READ_SECONDS: how long a thread needs to read a request. Prints its address, and ends with the exit code of a server.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from live_server import SETTINGS, served
from scripted_engine import ScriptedEngine, answer

from gptoss_export.server.admission import Admission
from gptoss_export.server.app import make_app
from gptoss_export.server.process import address_of, leave, listening_socket, make_server, run
from gptoss_export.text.tokenizer import Text


def main() -> int:
    """Serve until a signal comes."""
    step_seconds, drain_seconds, read_seconds = map(float, sys.argv[1:])
    settings = replace(SETTINGS, drain_seconds=drain_seconds)
    engine = ScriptedEngine(lambda prompt: answer("word " * 100), step_seconds=step_seconds)
    admission = Admission(settings)
    app = make_app(served(engine), settings, admission=admission)
    bound = listening_socket("127.0.0.1", 0)
    encode = Text.encode

    def slow(text: Text, given: str) -> list[int]:
        if given == "Read me.":
            print("reading", flush=True)
            time.sleep(read_seconds)
        return encode(text, given)

    Text.encode = slow  # type: ignore[method-assign]
    server = make_server(app, admission, drain_seconds, lambda: print(address_of(bound), flush=True))
    return run(server, bound)


if __name__ == "__main__":
    leave(main())

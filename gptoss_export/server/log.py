"""The server's log: a line for each request, written by a thread of its own."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

_MOST_WAITING = 10_000  # lines


class Log:
    """Writes events as lines. Who logs never waits: where nobody reads the lines, those that come later are dropped,
    and counted.

    write  writes a line to where the log goes. Where it raises OSError, the log has ended
    as_json  a JSON object a line; otherwise the words of the event
    """

    def __init__(self, write: Callable[[str], None], as_json: bool) -> None:
        self._write, self._as_json = write, as_json
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="gptoss-export log", daemon=True)
        self._thread.start()

    def event(self, name: str, **facts: Any) -> None:
        """Something happened. The facts are JSON values; those that are None are left out."""
        facts = {key: value for key, value in facts.items() if value is not None}
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._as_json:
            line = json.dumps({"time": now, "event": name, **facts})
        else:
            line = " ".join([now, name, *(f"{key}={_word(value)}" for key, value in facts.items())])
        self.line(line)

    def line(self, line: str) -> None:
        """A line as it is."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits, in some seconds at most."""
        try:
            self._lines.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
                if self._dropped:
                    dropped, self._dropped = self._dropped, 0
                    self._write(
                        f"{dropped} lines were dropped" if not self._as_json else json.dumps({"dropped": dropped})
                    )
            except OSError:
                return


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    plain = text.isascii() and text.isprintable() and not set(text) & set(' "=')
    return text if text and plain else json.dumps(text)

"""Replicas in processes of their own, and what a test wants to know of them."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from scripted import WORDS

KEY = "a-key-of-the-test"
MODEL = "tiny"
HEADER_TOKENS = 10  # of an answer, before its text: reasoning, and the headers of both messages
_START_SECONDS = 300  # on a machine that does much else
_MARK = "GPTOSS_TEST_CLUSTER"  # variable of the environment of all processes of a cluster


def answer(tokens: int) -> str:
    """What the endless artifact says in so many tokens."""
    return "".join(islice((*WORDS, *islice(cycle(WORDS[5:]), max(0, tokens))), max(0, tokens - HEADER_TOKENS)))


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Fails unless something becomes true in some seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not after {seconds:g} s: {what}"
        time.sleep(0.1)


@dataclass
class LiveReplicas:
    """A cluster with its address, a client that has the key, and the lines that its process prints."""

    process: subprocess.Popen[str]
    url: str
    http: httpx.Client
    mark: str
    lines: queue.Queue[str] = field(default_factory=queue.Queue)

    def figures(self) -> dict[tuple[str, str], float]:
        """The figures by name and replica."""
        text = self.http.get("/metrics").raise_for_status().text
        return {
            (sample.name, sample.labels.get("replica", "")): sample.value
            for metric in text_string_to_metric_families(text)
            for sample in metric.samples
        }

    def sum(self, name: str) -> float:
        """A figure of both replicas together. One that is slow to say its figures is asked again."""
        end = time.monotonic() + 60
        while (figures := self.figures())["gptoss_replicas", ""] != 2:
            assert time.monotonic() < end, f"figures of {figures['gptoss_replicas', '']:g} replicas, expected 2"
        return sum(value for (found, _), value in figures.items() if found == name)

    def pids(self) -> dict[str, int]:
        """The replicas by their names."""
        text = self.http.get("/metrics").raise_for_status().text
        found = re.findall(r'^gptoss_replica_info\{node="[^"]*",pid="(\d+)",replica="(\w+)"\}', text, re.MULTILINE)
        return {name: int(pid) for pid, name in found}

    def wait_for_two(self, without: str, seconds: float = 120) -> None:
        """Wait until two replicas run, and a certain one is none of them."""
        wait_until(
            lambda: len(pids := self.pids()) == 2 and without not in pids, seconds, f"two replicas without {without}"
        )


def processes(mark: str) -> list[str]:
    """The commands of all processes that have a variable in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended meanwhile
            continue
    return [command for command in found if command]


@contextmanager
def live_replicas(*command: str | Path) -> Iterator[LiveReplicas]:
    """The replicas that a Python script starts, which prints the address when they are ready."""
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # Ray makes sockets in it, whose paths must be short
    mark = f"{_MARK}={folder}"
    environment = os.environ | {"RAY_TMPDIR": folder, _MARK: folder, "GPTOSS_EXPORT_API_KEY": KEY}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    try:
        url = _address(lines)
        with httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False, verify=False
        ) as http:
            yield LiveReplicas(process, url, http, mark, lines)
    finally:
        for _ in range(2):  # the second one ends requests that run
            process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
        wait_until(lambda: not processes(mark), 120, "all processes have ended")
        shutil.rmtree(folder)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip("\n"))
    lines.put("")


def _address(lines: queue.Queue[str]) -> str:
    """The address in the first line that has one."""
    seen = []
    while True:
        line = lines.get(timeout=_START_SECONDS)
        seen.append(line)
        assert line, "the replicas did not start:\n" + "\n".join(seen)
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]

"""Runs replicas until a signal comes. Import this before `ray`: cluster.py says why."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING

from ..artifact.manifest import Manifest
from ..errors import GptOssExportError, RunError, UsageError
from ..server.process import address_of, listening_socket
from ..server.settings import hosts_of, is_loopback
from .artifact_check import check_gpus, checked, gpus
from .cluster import Place, joined
from .options import ReplicaOptions

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_APPLICATION = "gptoss-export"
_EXTRA_SECONDS = 10.0  # for the ingress to say that it has drained
_CLOSE_SECONDS = 0.5  # for the last bytes of responses on their way to clients


@dataclass
class Signals:
    """The signals to end that have come, and the thread that waits for the first or the second of them."""

    numbers: list[int] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)
    second: threading.Event = field(default_factory=threading.Event)

    def came(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        (self.second if self.numbers else self.first).set()
        self.numbers.append(number)


def run(options: ReplicaOptions, place: Place, ready: Callable[[str], None]) -> int:
    """Serve until SIGINT or SIGTERM comes. Requests that run then go on for `drain_seconds`; a second signal ends them.
    Returns the exit code: 0 where all requests ended by themselves, otherwise 128 and the number of the signal.

    options  its `settings.hosts` are names that clients may use besides those of this machine, where only this machine
             reaches the address. Elsewhere, none means any (settings.hosts_of says why)
    ready    is called with the address once clients are answered

    Raises UsageError for an address that cannot be had, for more GPUs than the cluster has, for a cluster on which
    Serve runs already and where ray is not installed, RunError where the replicas cannot start, and as
    `artifact_check.checked`.
    """
    manifest = checked(options)
    with listening_socket(place.host, place.port) as bound:  # so that an address in use is found out first
        url, (address, port) = address_of(bound), bound.getsockname()[:2]
    hosts = hosts_of(place.host, address, options.settings.hosts)
    options = replace(options, settings=replace(options.settings, hosts=hosts))
    place = replace(place, host=address, port=port)
    try:
        with joined(options, place), _served(options, manifest, place) as ingress, _signals() as signals:
            ready(url)
            signals.first.wait()
            complete = drained(ingress, options.settings.drain_seconds, signals)
    except KeyboardInterrupt:  # before it was ready
        return 128 + signal.SIGINT
    return 0 if complete else 128 + signals.numbers[-1]


@contextmanager
def _signals() -> Iterator[Signals]:
    """Takes the signals to end in place of Python and Ray."""
    signals = Signals()
    before = {number: signal.signal(number, signals.came) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _served(options: ReplicaOptions, manifest: Manifest, place: Place) -> Iterator[DeploymentHandle]:
    """The application runs; a handle of its ingress. `place` has an IP address and a port."""
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from .application import application

    check_gpus(options.replicas, gpus(options, manifest), ray.cluster_resources().get("GPU", 0))
    if serve.status().proxies:
        raise UsageError(
            f"--address {place.address}: Serve runs on this cluster already; use its own command: "
            "serve run gptoss_export.replicas.application:app artifact=ARTIFACT"
        )
    try:
        serve.start(
            proxy_location="HeadOnly" if is_loopback(place.host) else "EveryNode",
            http_options={"host": place.host, "port": place.port},
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
        try:
            ingress = serve.run(application(options), name=_APPLICATION)
        except RuntimeError as error:
            messages = [
                deployment.message
                for application in serve.status().applications.values()
                for deployment in application.deployments.values()
            ]
            raise RunError(f"the replicas cannot start: {reason(messages) or error}") from None
        yield ingress
    finally:
        if place.address is not None:  # a cluster of its own ends with it
            serve.shutdown()


def reason(messages: Iterable[str]) -> str | None:
    """The error of this project in what Serve says of deployments that cannot start: a traceback."""
    for message in messages:
        _, found, error = message.rpartition(f"\n{GptOssExportError.__module__}.")
        if found:
            return error.partition(": ")[2].strip()
    return None


def drained(ingress: DeploymentHandle, seconds: float, signals: Signals) -> bool:
    """Let requests end, until a second signal comes. Whether all ended by themselves."""
    complete: list[bool] = []

    def drain(seconds: float) -> None:
        with suppress(Exception):  # an ingress that has died has no request left
            complete.extend(ingress.broadcast("drain", seconds).results(timeout_s=seconds + _EXTRA_SECONDS))
        signals.second.set()

    threading.Thread(target=drain, args=(seconds,), name="gptoss-export drain", daemon=True).start()
    signals.second.wait(seconds + 2 * _EXTRA_SECONDS)
    in_time = list(complete)
    if not in_time:
        drain(0)
    time.sleep(_CLOSE_SECONDS)
    return bool(in_time) and all(in_time)

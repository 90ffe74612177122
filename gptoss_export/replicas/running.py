"""Runs replicas until a signal comes: on a Ray cluster of its own, or on one that is there.

Import this before `ray`: it tells Ray by environment variables to send no usage statistics and to stay on this machine,
and some of them are read when Ray is imported.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from ..artifact.manifest import Manifest
from ..errors import GptOssExportError, RunError, UsageError
from ..server.process import address_of, listening_socket
from ..server.settings import is_loopback
from .artifact_check import check_gpus, checked, gpus
from .options import ReplicaOptions

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_APPLICATION = "gptoss-export"
_STORE_BYTES = 256 * 2**20  # of Ray's object store: requests and responses are small
_EXTRA_SECONDS = 10.0  # for the ingress to say that it has drained


@dataclass(frozen=True)
class Place:
    """Where replicas run.

    host, port  at which Serve's proxies listen; port 0: any free one
    address     of a Ray cluster that this machine belongs to, such as "auto"; None: one is started that only this
                machine reaches, and ended with the replicas
    """

    host: str = "127.0.0.1"
    port: int = 8000
    address: str | None = None


@dataclass
class _Signals:
    """The signals to end that have come."""

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

    ready  is called with the address once clients are answered

    Raises UsageError for an address that cannot be had, for more GPUs than the cluster has, for a cluster on which
    Serve runs already and where ray is not installed, RunError where the replicas cannot start, and as
    `artifact_check.checked`.
    """
    manifest = checked(options)
    with listening_socket(place.host, place.port) as bound:  # so that an address in use is found out first
        url, port = address_of(bound), bound.getsockname()[1]
    try:
        with _ray(options, place), _served(options, manifest, place, port) as ingress, _signals() as signals:
            ready(url)
            signals.first.wait()
            complete = _drained(ingress, options, signals)
    except KeyboardInterrupt:  # before it was ready
        return 128 + signal.SIGINT
    return 0 if complete else 128 + signals.numbers[-1]


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Takes the signals to end in place of Python and Ray."""
    signals = _Signals()
    before = {number: signal.signal(number, signals.came) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray(options: ReplicaOptions, place: Place) -> Iterator[None]:
    """This process is a part of a Ray cluster."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}  # each line of a replica's log is shown
    if not sys.stdout.isatty():
        wanted["RAY_COLOR_PREFIX"] = "0"
    if place.address is None:
        # Whoever reaches Ray's ports and knows the token runs code in this cluster. So they are on the loopback
        # interface alone (Ray's name of the variable speaks of other systems), and the token is a new one.
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        wanted["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] = "1"  # its GPU is needed for the one that replaces it
        if "RAY_AUTH_MODE" not in os.environ:
            wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise UsageError(f"{error.name or 'ray'} is not installed; run: pip install 'gptoss-export[ray]'") from None
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if place.address is None:
        cpus = max(os.cpu_count() or 1, math.ceil(options.cpus * options.replicas))
        ray.init(
            "local",
            include_dashboard=False,
            num_cpus=cpus,
            object_store_memory=_STORE_BYTES,
            logging_level=logging.WARNING,
        )
    else:
        ray.init(place.address, logging_level=logging.WARNING)
    try:
        yield
        if place.address is not None:
            serve.shutdown()
    finally:
        ray.shutdown()


@contextmanager
def _served(options: ReplicaOptions, manifest: Manifest, place: Place, port: int) -> Iterator[DeploymentHandle]:
    """The application runs; a handle of its ingress."""
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
    serve.start(
        proxy_location="HeadOnly" if is_loopback(place.host) else "EveryNode",
        http_options={"host": place.host, "port": port},
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


def reason(messages: Iterable[str]) -> str | None:
    """The error of this project in what Serve says of deployments that cannot start: a traceback."""
    for message in messages:
        _, found, error = message.rpartition(f"\n{GptOssExportError.__module__}.")
        if found:
            return error.partition(": ")[2].strip()
    return None


def _drained(ingress: DeploymentHandle, options: ReplicaOptions, signals: _Signals) -> bool:
    """Let requests end, until a second signal comes. Whether all ended by themselves."""
    seconds = options.settings.drain_seconds
    complete: list[bool] = []

    def wait() -> None:
        answer = ingress.broadcast("drain", seconds)
        complete.extend(answer.results(timeout_s=seconds + _EXTRA_SECONDS))
        signals.second.set()

    threading.Thread(target=wait, name="gptoss-export drain", daemon=True).start()
    signals.second.wait(seconds + 2 * _EXTRA_SECONDS)
    return bool(complete) and all(complete)

"""The Ray cluster that replicas run in: one of their own, or one that is there.

Import this before `ray`: it tells Ray by environment variables to send no usage statistics and to stay on this machine,
and some of them are read when Ray is imported.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import UsageError
from .options import ReplicaOptions

_STORE_BYTES = 256 * 2**20  # of Ray's object store: requests and responses are small


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


@contextmanager
def joined(options: ReplicaOptions, place: Place) -> Iterator[None]:
    """This process belongs to the cluster. Raises UsageError where ray is not installed."""
    _tell_ray(place)
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise UsageError(f"{error.name or 'ray'} is not installed; run: pip install 'gptoss-export[ray]'") from None
    logging.getLogger(serve.__name__).setLevel(logging.WARNING)
    try:
        if place.address is None:
            ray.init(
                "local",
                include_dashboard=False,
                num_cpus=max(os.cpu_count() or 1, math.ceil(options.cpus * options.replicas)),
                object_store_memory=_STORE_BYTES,
                logging_level=logging.WARNING,
            )
        else:
            ray.init(place.address, logging_level=logging.WARNING)
        yield
    finally:
        ray.shutdown()


def _tell_ray(place: Place) -> None:
    """Set what Ray reads from the environment, unless the operator has set it."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}  # each line of a replica's log is shown
    if not sys.stdout.isatty():
        wanted["RAY_COLOR_PREFIX"] = "0"
    if place.address is None:
        # Whoever reaches Ray's ports and knows the token runs code in this cluster. So they are on the loopback
        # interface alone (Ray's name of the variable speaks of other systems), and the token is a new one.
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        wanted["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] = "1"  # its GPU is needed for the one that replaces it
        wanted["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # three times 5 s are too few where all cores are busy
        if "RAY_AUTH_MODE" not in os.environ:
            wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)

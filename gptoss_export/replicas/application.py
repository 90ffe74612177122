"""Serve's application of replicas: what `serve.run`, `serve run` and `serve deploy` take.

Annotations are not postponed here: Serve looks at that of `app`, and makes its argument of it.
"""

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from ..server.allowed_names import check_names
from ..server.api_keys import api_keys
from ..server.settings import LOCALHOST, ServerSettings
from .artifact_check import checked, gpus
from .ingress import Ingress
from .options import Loading, ReplicaOptions
from .replica import Replica
from .router import PrefixRouter

_NAME = "Replica"  # of the replicas' deployment
_STARTS = 3  # attempts of a replica to start, before the application is given up
_INGRESS_REQUESTS = 1_000_000  # the ingress itself says how many it takes


class Arguments(BaseModel):
    """What `serve run gptoss_export.replicas.application:app` takes, as NAME=VALUE. ReplicaOptions says the rest.

    model_name  None: the name of the artifact's folder
    hosts       names that clients may call the server by, separated by commas; "*": any. None: any with an API key, and
                otherwise those of this machine (settings.hosts_of says why)
    """

    model_config = ConfigDict(extra="forbid")

    artifact: Path
    model_name: str | None = None
    replicas: int = 2
    gpus: float | None = None
    cpus: float = 1.0
    ingresses: int = 1
    max_requests: int = ServerSettings.max_requests
    hosts: str | None = None
    kv_memory: int | None = None


def app(arguments: Arguments) -> Application:
    """Replicas of an artifact, for Serve's own commands. Clients must send the key of the environment, if there is one
    (api_keys.KEY_VARIABLE). Raises UsageError for a key and for names that no request can have, and as `application`
    does."""
    artifact = arguments.artifact.absolute()
    keys = api_keys()
    hosts = _hosts(arguments.hosts, keys)
    settings = ServerSettings(api_keys=keys, max_requests=arguments.max_requests, hosts=hosts)
    return application(
        ReplicaOptions(
            artifact=artifact,
            name=arguments.model_name or artifact.name,
            replicas=arguments.replicas,
            gpus=arguments.gpus,
            cpus=arguments.cpus,
            ingresses=arguments.ingresses,
            settings=settings,
            loading=Loading(kv_memory=arguments.kv_memory),
        )
    )


def _hosts(given: str | None, keys: tuple[str, ...]) -> tuple[str, ...]:
    """The names that clients may call the server by, as ServerSettings has them."""
    if given is None:
        return () if keys else LOCALHOST
    if given == "*":
        return ()
    names = tuple(name.strip().lower() for name in given.split(","))
    check_names(names, host_option="hosts")
    return names


def application(options: ReplicaOptions) -> Application:
    """Replicas of an artifact, and an ingress before them. Raises as `artifact_check.checked`."""
    manifest = checked(options)
    log = LoggingConfig(log_level="WARNING", enable_access_log=False)
    patience, settings = options.patience, options.settings
    replicas = serve.deployment(
        name=_NAME,
        num_replicas=options.replicas,
        ray_actor_options={"num_gpus": gpus(options, manifest), "num_cpus": options.cpus},
        max_ongoing_requests=options.most_ongoing,
        health_check_period_s=patience.check,
        health_check_timeout_s=patience.health,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        max_constructor_retry_count=_STARTS,
        request_router_config={
            "request_router_class": PrefixRouter,
            "request_router_kwargs": {"known": options.known},
        },
        logging_config=log,
    )(Replica)
    ingress = serve.deployment(
        num_replicas=options.ingresses,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        logging_config=log,
    )(Ingress)
    return ingress.bind(options, replicas.bind(options, int(time.time())), _NAME)

"""Serve replicas of an artifact, a GPU each, with OpenAI's API at one address.

    python examples/ray_serve.py ARTIFACT --replicas 2

ARTIFACT is a folder that `gptoss-export build` made of a checkpoint with a tokenizer.json. Ctrl-C lets requests end.
Needs Ray Serve: pip install 'gptoss-export[ray]'. On a Ray cluster, run it on one of the hosts with --address auto, or
use Serve's own command: serve run gptoss_export.replicas.application:app artifact=ARTIFACT replicas=2
"""

import argparse
import sys
from pathlib import Path

from gptoss_export.errors import GptOssExportError
from gptoss_export.replicas.cluster import Place
from gptoss_export.replicas.options import ReplicaOptions
from gptoss_export.replicas.running import run
from gptoss_export.server.allowed_names import check_names
from gptoss_export.server.api_keys import api_keys
from gptoss_export.server.settings import ServerSettings

LIMITS = ("max_requests", "max_body", "queue_seconds", "request_seconds", "drain_seconds")  # as `gptoss-export serve`

parser = argparse.ArgumentParser(description="Serve replicas of an artifact with Ray Serve.")
parser.add_argument("artifact", type=Path)
parser.add_argument("--replicas", type=int, default=2)
parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of every host")
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--address", help="a Ray cluster that this host belongs to, such as auto; default: a new one here")
parser.add_argument("--model-name", help="what clients call the model; default: the artifact's folder")
parser.add_argument("--allow-host", action="append", default=[], help="name that clients may call the server by")
parser.add_argument("--allow-origin", action="append", default=[], help="origin whose web pages may use the server")
for limit in LIMITS:
    default = getattr(ServerSettings, limit)
    parser.add_argument(f"--{limit.replace('_', '-')}", type=type(default), default=default)
given = parser.parse_args()

artifact = given.artifact.absolute()
name = given.model_name or artifact.name
try:
    check_names(given.allow_host, given.allow_origin)
    settings = ServerSettings(
        api_keys=api_keys(),  # that of the environment: clients must then send it
        hosts=tuple(given.allow_host),
        origins=tuple(given.allow_origin),
        **{limit: getattr(given, limit) for limit in LIMITS},
    )
    options = ReplicaOptions(artifact, name, given.replicas, settings=settings)
    place = Place(given.host, given.port, given.address)
    sys.exit(run(options, place, lambda url: print(f"{name}: {given.replicas} replicas ready at {url}", flush=True)))
except GptOssExportError as error:
    sys.exit(f"error: {error}")

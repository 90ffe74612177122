"""Whether an artifact can be served with replicas, found out before any of them is started."""

from __future__ import annotations

from ..artifact.keys import read_trusted_keys
from ..artifact.manifest import Manifest, load_manifest
from ..artifact.signature import signature_check
from ..errors import UsageError
from ..harmony.vocabulary import HarmonyTokenizer
from .options import ReplicaOptions


def checked(options: ReplicaOptions) -> Manifest:
    """The manifest of the artifact.

    Raises ArtifactError for what is no artifact, or not signed by a trusted key, UsageError for one without a tokenizer
    of the chat format.
    """
    loading = options.loading
    keys = read_trusted_keys(list(loading.trust) or None, loading.verify_hashes)
    manifest = load_manifest(options.artifact, signature_check(options.artifact, keys))
    HarmonyTokenizer.open(options.artifact, manifest)
    return manifest


def gpus(options: ReplicaOptions, manifest: Manifest) -> float:
    """GPUs of each replica."""
    of_ranks = manifest.sizes.ranks if manifest.device == "cuda" else 0
    return float(of_ranks) if options.gpus is None else options.gpus


def check_gpus(replicas: int, each: float, there: float) -> None:
    """Raise UsageError where a cluster has too few GPUs: Serve would wait for more."""
    if replicas * each > there:
        raise UsageError(
            f"{replicas} replicas need {replicas * each:g} GPUs, and the cluster has {there:g}; start fewer replicas, "
            "or add hosts with GPUs to the cluster"
        )

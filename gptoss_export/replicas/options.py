"""What an operator chooses for replicas of an artifact."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError, raise_all
from ..server.engine_health import LONGEST_STEPS
from ..server.settings import ServerSettings


@dataclass(frozen=True)
class Loading:
    """How each replica loads the artifact. The fields are arguments of `load`."""

    verify_hashes: bool = True
    trust: tuple[Path, ...] = ()
    fixed_width: bool = False
    kv_memory: int | None = None


@dataclass(frozen=True)
class Patience:
    """How long one part of the system waits for another. Seconds.

    beat     a replica that has nothing to send for a response says after so long that it is alive
    silence  a replica that sends nothing for so long is taken for lost; several times `beat`
    check    between two health checks of a replica. It is replaced after three failures in a row
    health   a replica that does not say for so long how it is has failed a check
    step     an engine that takes no step for so long fails the checks. None: 20 s with a GPU, and 600 s without one,
             where a step can take minutes
    """

    beat: float = 5.0
    silence: float = 30.0
    check: float = 2.0
    health: float = 10.0
    step: float | None = None

    def longest_step(self, device: str) -> float:
        """`step` for an artifact for "cuda" or "cpu"."""
        if self.step is not None:
            return self.step
        return LONGEST_STEPS[device]


@dataclass(frozen=True)
class ReplicaOptions:
    """Replicas of one artifact.

    artifact   its folder, which has the same path on every host
    name       what clients call the model
    replicas   how many there are
    gpus       of each replica; None: one for each rank of an artifact for CUDA, otherwise none
    cpus       of each replica, which is also the number of threads of an artifact for a CPU
    ingresses  processes that take requests from Serve's proxies. Each knows only the prompts that it has sent itself
    parts      of responses that an ingress passes on in a second, at most: each takes it about a millisecond. Of many
               streams at a time, each gets fewer and larger parts
    known      most beginnings of prompts that an ingress remembers. Each takes about 200 bytes, and a prompt of 4,000
               characters has 16 of them
    """

    artifact: Path
    name: str
    replicas: int = 2
    gpus: float | None = None
    cpus: float = 1.0
    ingresses: int = 1
    parts: int = 400
    known: int = 100_000
    settings: ServerSettings = field(default_factory=ServerSettings)
    loading: Loading = field(default_factory=Loading)
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that cannot be."""
        raise_all(
            UsageError,
            "replicas cannot be started",
            [
                f"{name}: found {value}, expected {least} or more"
                for name, value, least in (
                    ("replicas", self.replicas, 1),
                    ("ingresses", self.ingresses, 1),
                    ("parts", self.parts, 1),
                    ("known", self.known, 1),
                    ("gpus", self.gpus or 0, 0),
                    ("cpus", self.cpus, 0),
                )
                if value < least
            ],
        )

    @property
    def most_ongoing(self) -> int:
        """Requests that a replica takes at a time: more than its server admits, so that the server refuses the next."""
        return self.settings.max_requests + 64

"""The server's figures, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..runtime.engine import EngineStats
from .admission import Admission

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of `Metrics.text`, as a response
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


@dataclass(frozen=True)
class _EngineFigures(Collector):
    """What the engine and the admission know, when somebody asks."""

    stats: Callable[[], EngineStats]
    admission: Admission

    def collect(self) -> Iterator[Metric]:
        stats = self.stats()
        for name, what, gauge in (
            ("gptoss_requests_running", "Answers that are generated", stats.running),
            ("gptoss_requests_waiting", "Answers that wait for a slot or for memory of the KV cache", stats.waiting),
            ("gptoss_requests_admitted", "Answers of requests that were let in", self.admission.running),
            ("gptoss_kv_pages", "Pages of the KV cache; 0 where it has no pages", stats.pages),
            ("gptoss_kv_pages_used", "Pages of the KV cache that sequences hold", stats.held_pages),
            ("gptoss_draining", "1 while the server ends", int(self.admission.draining)),
        ):
            yield GaugeMetricFamily(name, what, gauge)
        for name, what, count in (
            ("gptoss_engine_ended", "Answers that have ended, cancelled ones too", stats.ended),
            ("gptoss_engine_tokens", "Tokens that were generated", stats.tokens),
            ("gptoss_engine_set_back", "Answers that lost their pages to an older one, and were computed again",
             stats.set_back),
            ("gptoss_prompt_tokens_reused", "Tokens of prompts that were found in the KV cache", stats.reused_tokens),
        ):  # fmt: skip
            yield CounterMetricFamily(name, what, count)


class Metrics:
    """Figures in a registry of their own: two servers in a process do not mix."""

    def __init__(self, stats: Callable[[], EngineStats], admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineFigures(stats, admission))
        self._requests = Counter(
            "gptoss_http_requests", "Requests by what became of them", ["path", "outcome"], registry=self._registry
        )
        self._prompt = Counter("gptoss_prompt_tokens", "Tokens of prompts", registry=self._registry)
        self._generated = Counter("gptoss_generated_tokens", "Tokens of answers", registry=self._registry)
        self._durations = Histogram(
            "gptoss_request_duration_seconds",
            "From a request to the end of its response",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "gptoss_time_to_first_token_seconds",
            "From a request to the first token of an answer",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._between = Histogram(
            "gptoss_time_between_tokens_seconds",
            "From a token of an answer to the next",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def prompt(self, tokens: int) -> None:
        """A prompt was given to the engine."""
        self._prompt.inc(tokens)

    def first_token(self, seconds: float) -> None:
        """An answer has its first token."""
        self._first.observe(seconds)

    def tokens(self, count: int) -> None:
        """Tokens of an answer came."""
        self._generated.inc(count)

    def between_tokens(self, seconds: float) -> None:
        """A token came so long after the one before it."""
        self._between.observe(seconds)

    def request(self, path: str, outcome: str, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(path, outcome).inc()
        self._durations.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)

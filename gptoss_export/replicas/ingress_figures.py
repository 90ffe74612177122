"""The figures of an ingress and of all replicas, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from ..server.admission import Admission
from .calls import Figures


class IngressFigures:
    """Counts what becomes of requests on their way to replicas."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._registry = CollectorRegistry()
        self._again = Counter(
            "gptoss_ingress_asked_again",
            "Requests that were sent to another replica, since theirs was lost",
            registry=self._registry,
        )
        self._lost = Counter(
            "gptoss_ingress_lost",
            "Requests that ended with an error, since their replica was lost",
            registry=self._registry,
        )

    def again(self) -> None:
        """A request is sent to another replica."""
        self._again.inc()

    def lost(self) -> None:
        """A request ends with an error."""
        self._lost.inc()

    def text(self, replicas: Sequence[Figures]) -> bytes:
        """All figures in Prometheus' text format. Those of replicas have their name as a label."""
        registry = CollectorRegistry()
        registry.register(_Collected([*self._registry.collect(), *self._own(replicas), *_labelled(replicas)]))
        return generate_latest(registry)

    def _own(self, replicas: Sequence[Figures]) -> Iterator[Metric]:
        yield GaugeMetricFamily("gptoss_ingress_requests", "Requests under way", self._admission.running)
        yield GaugeMetricFamily("gptoss_replicas", "Replicas that gave their figures", len(replicas))
        of_each = GaugeMetricFamily(
            "gptoss_replica_info", "1 for each replica: where it runs", labels=("replica", "node", "pid")
        )
        for figures in replicas:
            of_each.add_metric((figures.replica, figures.node, str(figures.pid)), 1)
        yield of_each


class _Collected(Collector):
    """Figures that were collected."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _labelled(replicas: Sequence[Figures]) -> Iterable[Metric]:
    """The figures of all replicas, each metric once."""
    metrics: dict[str, Metric] = {}
    for figures in replicas:
        for metric in text_string_to_metric_families(figures.text):
            known = metrics.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            known.samples += [
                Sample(sample.name, {**sample.labels, "replica": figures.replica}, sample.value)
                for sample in metric.samples
            ]
    return metrics.values()

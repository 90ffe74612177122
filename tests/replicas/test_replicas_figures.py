"""The figures of all replicas in one text."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from gptoss_export.replicas.calls import Figures
from gptoss_export.replicas.ingress_figures import IngressFigures
from gptoss_export.runtime.engine import EngineStats
from gptoss_export.server.admission import Admission
from gptoss_export.server.metrics import Metrics
from gptoss_export.server.settings import ServerSettings

SETTINGS = ServerSettings()


def of_server(running: int, seconds: float) -> str:
    """The figures of a server that has answered one request."""
    stats = EngineStats(running, 0, 1, 20, 0, 64, 100, 7)
    metrics = Metrics(lambda: stats, Admission(SETTINGS))
    metrics.request('/v1/a"b\n', "ok", seconds)
    metrics.first_token(seconds)
    return metrics.text().decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
    }


def test_every_figure_of_every_replica_is_there() -> None:
    texts = {"one": of_server(3, 0.2), "two": of_server(5, 7.0)}
    replicas = [Figures(name, "10.0.0.1", 100 + at, text) for at, (name, text) in enumerate(texts.items())]
    text = IngressFigures(Admission(SETTINGS)).text(replicas).decode()
    found = samples(text)
    for name, of_one in texts.items():
        for (sample, labels), value in samples(of_one).items():
            assert found.pop((sample, tuple(sorted((*labels, ("replica", name)))))) == value
    assert not any("replica" in dict(labels) for sample, labels in found if sample != "gptoss_replica_info")
    assert len([line for line in text.splitlines() if line.startswith("# TYPE gptoss_requests_running ")]) == 1
    for at, name in enumerate(texts):
        labels = (("node", "10.0.0.1"), ("pid", str(100 + at)), ("replica", name))
        assert found["gptoss_replica_info", labels] == 1


def test_the_ingress_counts_itself() -> None:
    async def run() -> str:
        admission = Admission(SETTINGS)
        figures = IngressFigures(admission)
        figures.again()
        figures.again()
        figures.lost()
        async with admission.admitted(1):
            return figures.text([]).decode()

    found = samples(asyncio.run(run()))
    assert found["gptoss_ingress_asked_again_total", ()] == 2
    assert found["gptoss_ingress_lost_total", ()] == 1
    assert found["gptoss_ingress_requests", ()] == 1
    assert found["gptoss_replicas", ()] == 0

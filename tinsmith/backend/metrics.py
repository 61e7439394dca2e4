"""What a server counts and measures, in the terms of Prometheus.

Counting is a few additions in memory; what can be read off the server is read when the metrics
are asked for. Rates follow from the counters, as in `rate(tinsmith_sampled_tokens_total[1m])`.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

# Upper bounds in seconds: from a decode step of a tiny model to a large batch on a CPU.
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # resident memory, CPU time, open files
        self.http_requests = Counter(
            "tinsmith_http_requests_total",
            "Answered HTTP requests; those told to back off have status 429.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.operation_s = Histogram(
            "tinsmith_operation_duration_seconds",
            "Time that the engine spent on one operation, without its wait.",
            ("operation",),
            buckets=STEP_BUCKETS_S,
            registry=self.registry,
        )
        self.sampling_step_s = Histogram(
            "tinsmith_sampling_step_duration_seconds",
            "Time of one sampling step: prefills, and a token for every running completion.",
            buckets=STEP_BUCKETS_S,
            registry=self.registry,
        )
        self.sampled_tokens = Counter(
            "tinsmith_sampled_tokens_total", "Tokens sampled.", registry=self.registry
        )
        self.trained_tokens = Counter(
            "tinsmith_trained_tokens_total",
            "Tokens of data whose gradient was accumulated.",
            registry=self.registry,
        )

    def read_when_asked(self, gauges: Iterable["Gauge"]) -> None:
        """Add values that are read off the server whenever the metrics are asked for."""
        self.registry.register(_Gauges(tuple(gauges)))


class Gauge:
    """A value of the moment; with a label, one for each of the label's values."""

    def __init__(
        self, name: str, help_text: str, read: Callable[[], dict[str, float]], label: str = ""
    ) -> None:
        """`read` gives values by the value of `label`; without a label, by the empty string."""
        self.name = name
        self.help_text = help_text
        self.read = read
        self.label = label


class _Gauges(Collector):
    def __init__(self, gauges: tuple[Gauge, ...]) -> None:
        self._gauges = gauges

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(gauge.name, gauge.help_text) for gauge in self._gauges]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for gauge in self._gauges:
            labels = [gauge.label] if gauge.label else []
            family = GaugeMetricFamily(gauge.name, gauge.help_text, labels=labels)
            for value_of_label, value in gauge.read().items():
                family.add_metric([value_of_label] if labels else [], value)
            yield family


def gpu_bytes() -> dict[str, float]:
    """Memory that torch holds on each GPU; nothing where there is none."""
    if not torch.cuda.is_available():
        return {}
    return {
        f"cuda:{index}": float(torch.cuda.memory_allocated(index))
        for index in range(torch.cuda.device_count())
    }

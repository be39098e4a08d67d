"""The instruments. Events are counted in plain attributes and gathered when Prometheus asks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric


class RouteMetrics:
    """What is counted for one route."""

    __slots__ = (
        "bytes_in",
        "connects",
        "duplicates",
        "errors",
        "events_delivered",
        "events_in",
        "events_replayed",
        "heartbeats",
        "lost",
        "passthrough",
        "resumes",
        "stalls",
        "undecoded",
    )

    def __init__(self) -> None:
        self.events_in = 0
        self.bytes_in = 0
        self.events_delivered = 0
        self.events_replayed = 0
        self.heartbeats = 0
        self.lost = 0
        self.duplicates = 0
        self.stalls = 0
        self.undecoded = 0
        self.resumes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.connects: Counter[str] = Counter()
        self.passthrough: Counter[str] = Counter()


_COUNTERS = (
    ("sse_events_received", "Events that upstreams sent.", "events_in"),
    ("sse_upstream_bytes", "Bytes of event streams that upstreams sent, decoded.", "bytes_in"),
    ("sse_events_delivered", "Events written to clients, replayed ones included.", "events_delivered"),
    ("sse_events_replayed", "Events written to clients from the history.", "events_replayed"),
    ("sse_heartbeats", "Heartbeats written to clients.", "heartbeats"),
    ("sse_message_loss", "Events that a resume asked for and the history no longer held.", "lost"),
    ("sse_duplicate_events", "Events that an upstream sent again after a reconnect, dropped.", "duplicates"),
    ("sse_stall_detections", "Times an upstream stayed silent past stall_timeout.", "stalls"),
    ("sse_undecodable_streams", "Event streams in a content coding unknown here, passed on as they were.", "undecoded"),
)
_LABELLED = (
    ("sse_user_visible_errors", "Signals sent, and error answers to requests for a stream.", "code", "errors"),
    ("sse_resumes", "Requests with a resume token, by what they got.", "status", "resumes"),
    ("sse_upstream_connects", "Requests sent to an upstream, by result.", "result", "connects"),
    ("sse_passthrough_requests", "Requests answered with something else than an event stream.", "code", "passthrough"),
)


class Metrics(Collector):
    """All counters, and the gauges that are read from the parts when asked."""

    def __init__(self) -> None:
        self._routes: dict[str, RouteMetrics] = {}
        self._evictions: Counter[str] = Counter()
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def route(self, name: str) -> RouteMetrics:
        """The counters of a route; its name comes from the configuration, so there are few."""
        return self._routes.setdefault(name, RouteMetrics())

    def evicted(self, cause: str) -> None:
        self._evictions[cause] += 1

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge whose value is asked for at every scrape."""
        self._gauges.append((name, help_text, read))

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        for name, help_text, attribute in _COUNTERS:
            family = CounterMetricFamily(name, help_text, labels=["route"])
            for route, counts in self._routes.items():
                family.add_metric([route], getattr(counts, attribute))
            yield family
        for name, help_text, label, attribute in _LABELLED:
            family = CounterMetricFamily(name, help_text, labels=["route", label])
            for route, counts in self._routes.items():
                for value, number in getattr(counts, attribute).items():
                    family.add_metric([route, value], number)
            yield family
        evictions = CounterMetricFamily("sse_evictions", "Streams or parts evicted, by what went.", labels=["cause"])
        for cause, number in self._evictions.items():
            evictions.add_metric([cause], number)
        yield evictions
        for name, help_text, read in self._gauges:
            yield GaugeMetricFamily(name, help_text, value=read())

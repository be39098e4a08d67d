"""The instruments: what is counted for each route, and how Prometheus is told.

Whatever happens to an event is counted in plain attributes, and gathered when someone asks. Clocks are passed in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sse_sidecar import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

COMPLETION_WINDOW = 300.0
SAMPLE_EVERY = 5.0
"""Seconds between two samples of what has been delivered; the completion rate's window may be that much shorter."""

_MISHAPS = 50
_RECONNECT_MS = (100, 250, 500, 1000, 1500, 2000, 3000, 5000, 7500, 10_000, 30_000, 60_000, 300_000, 1_800_000)
_REPLAY_EVENTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000)
_DELIVERY_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

# What is known beforehand begins at 0: to Prometheus, a counter that appears with 1 has not increased.
_ERRORS = "gap reset upstream-lost too-large gone max_streams max_readers draining 422 500 502 503 504"
_STATES = "live reconnecting complete dormant broken"
_RESUMES = "resumed gap reset new over gone"
_EVICTIONS = "finished dormant tombstone passed reader"


def _from_zero(keys: str) -> Counter[str]:
    return Counter(dict.fromkeys(keys.split(), 0))


class Histogram:
    """How many values were at most as large as each bound, and larger than the one before; then those above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: `le`, and how many were at most that."""
        limits = map(floatToGoString, (*self.bounds, inf))
        return list(zip(limits, accumulate(map(float, self.counts)), strict=True))


class Mishap(NamedTuple):
    """Something that a user saw, or may have waited for: `times` in a row, the last at `time` (seconds since 1970)."""

    time: float
    route: str
    code: str
    stream: str
    times: int


class Mishaps:
    """The last ones, newest last. One that goes on is one."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._last: deque[Mishap] = deque(maxlen=_MISHAPS)

    def add(self, route: str, code: str, stream: str, times: int) -> None:
        if self._last and self._last[-1][1:4] == (route, code, stream):
            times += self._last.pop().times
        self._last.append(Mishap(self._wall(), route, code, stream, times))

    def __iter__(self) -> Iterator[Mishap]:
        return iter(self._last)


class Delivered(NamedTuple):
    """Events written to clients, and those among them that were a replay."""

    delivered: int
    replayed: int

    @property
    def completion_rate(self) -> float:
        """Percent that needed no replay; 100 where there was nothing."""
        return 100.0 * (self.delivered - self.replayed) / self.delivered if self.delivered else 100.0


class RouteMetrics:
    """What is counted for one route."""

    __slots__ = (
        "_clock",
        "_mishaps",
        "_samples",
        "bytes_delivered",
        "bytes_received",
        "concurrent",
        "connects",
        "delivery",
        "duplicates",
        "errors",
        "events_delivered",
        "events_received",
        "events_replayed",
        "evictions",
        "heartbeats",
        "lost",
        "name",
        "passthrough",
        "readers",
        "reads",
        "reconnects",
        "replays",
        "requests",
        "resumes",
        "sample_due",
        "stalls",
        "stopwatch",
        "streams",
        "undecoded",
        "unread",
    )

    def __init__(self, name: str, clock: Callable[[], float], stopwatch: Callable[[], float], mishaps: Mishaps) -> None:
        self.name = name
        self._clock = clock
        self.stopwatch = stopwatch
        """Seconds, finer than the loop's clock, which stands still while the loop works."""
        self._mishaps = mishaps
        self._samples: deque[tuple[float, int, int]] = deque()
        self.sample_due = 0.0
        """When `sample` is to be called, before anything more is delivered."""
        self.reads = 0
        """Pieces of event streams that came from upstreams."""
        self.events_received = 0
        self.bytes_received = 0
        self.events_delivered = 0
        self.events_replayed = 0
        self.bytes_delivered = 0
        self.heartbeats = 0
        self.lost = 0
        self.duplicates = 0
        self.stalls = 0
        self.undecoded = 0
        self.requests = 0
        self.readers = 0
        self.concurrent = 0
        self.unread = 0
        self.streams = _from_zero(_STATES)
        self.resumes = _from_zero(_RESUMES)
        self.errors = _from_zero(_ERRORS)
        self.evictions = _from_zero(_EVICTIONS)
        self.connects = _from_zero("ok kept Unreachable ConnectTimeout")
        self.passthrough: Counter[str] = Counter()
        self.reconnects = Histogram(_RECONNECT_MS)
        self.replays = Histogram(_REPLAY_EVENTS)
        self.delivery = Histogram(_DELIVERY_SECONDS)

    def failed(self, code: str, stream: str = "", *, times: int = 1) -> None:
        """Clients were sent a signal, or an answer that is an error."""
        self.errors[code] += times
        self._mishaps.add(self.name, code, stream, times)

    def connected(self, result: str) -> None:
        self.connects[result] += 1

    def stalled(self, stream: str) -> None:
        self.stalls += 1
        self._mishaps.add(self.name, "stall", stream, 1)

    def sample(self, now: float) -> None:
        """Notes what has been delivered by now, for `recent` to look back at. Nothing happens while nothing moves."""
        self.sample_due = now + SAMPLE_EVERY
        self._samples.append((now, self.events_delivered, self.events_replayed))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._samples and self._samples[0][0] < now - COMPLETION_WINDOW:
            self._samples.popleft()

    @property
    def recent(self) -> Delivered:
        """What was delivered in the last five minutes."""
        self._forget(self._clock())
        if not self._samples:
            return Delivered(0, 0)
        _, delivered, replayed = self._samples[0]
        return Delivered(self.events_delivered - delivered, self.events_replayed - replayed)

    @property
    def completion_rate(self) -> float:
        return self.recent.completion_rate


class _Instrument(NamedTuple):
    """A metric of every route: where its value lies, or its values by a label."""

    name: str
    help: str
    attribute: str
    label: str = ""


_GAUGES = (
    _Instrument(
        "sse_stream_completion_rate",
        "Percent of the events delivered in the last five minutes that needed no replay; 100 where there were none.",
        "completion_rate",
    ),
    _Instrument("sse_concurrent_streams", "Streams with a reader.", "concurrent"),
    _Instrument("sse_unread_streams", "Streams with an upstream and no reader.", "unread"),
    _Instrument("sse_readers", "Clients connected to streams.", "readers"),
    _Instrument("sse_streams", "Streams held, by state.", "streams", "state"),
)
_COUNTERS = (
    _Instrument("sse_message_loss", "Events that a resume asked for and the history no longer held.", "lost"),
    _Instrument("sse_duplicate_events", "Events that an upstream sent again after a reconnect, dropped.", "duplicates"),
    _Instrument("sse_stall_detections", "Times an upstream stayed silent past stall_timeout.", "stalls"),
    _Instrument(
        "sse_user_visible_errors", "Signals sent, and error answers to requests for a stream.", "errors", "code"
    ),
    _Instrument(
        "sse_stream_requests",
        "Requests that accept an event stream, bear a resume token or got a stream, whatever they were answered with.",
        "requests",
    ),
    _Instrument("sse_resumes", "Requests that came back to a stream, by what they got.", "resumes", "status"),
    _Instrument("sse_events_received", "Events that upstreams sent, dropped ones not among them.", "events_received"),
    _Instrument("sse_events_delivered", "Events written to clients, replayed ones included.", "events_delivered"),
    _Instrument("sse_events_replayed", "Events that a resume missed and was sent from the history.", "events_replayed"),
    _Instrument("sse_received_bytes", "Bytes of event streams that upstreams sent, decoded.", "bytes_received"),
    _Instrument("sse_delivered_bytes", "Bytes of events written to clients, ids included.", "bytes_delivered"),
    _Instrument("sse_heartbeats", "Heartbeats written to clients.", "heartbeats"),
    _Instrument("sse_upstream_connects", "Connections to upstreams, by result.", "connects", "result"),
    _Instrument(
        "sse_passthrough_requests",
        "Requests answered with something else than an event stream, by status.",
        "passthrough",
        "code",
    ),
    _Instrument(
        "sse_undecodable_streams",
        "Event streams in a content coding unknown here, passed on as they were.",
        "undecoded",
    ),
    _Instrument("sse_evictions", "What was let go of for want of room, by what it was.", "evictions", "cause"),
)
_HISTOGRAMS = (
    _Instrument(
        "sse_reconnect_time_ms",
        "Milliseconds from the moment a reader was gone to its resume; not of one that was not seen to go.",
        "reconnects",
    ),
    _Instrument("sse_replay_events", "Events that a resume had missed and was sent.", "replays"),
    _Instrument(
        "sse_delivery_seconds",
        "From the read of an upstream's bytes to the write of their events to the last live reader; one read in 16.",
        "delivery",
    ),
)


class Metrics(Collector):
    """All instruments. `clock` gives the loop's seconds, `stopwatch` finer ones, `wall` those since 1970."""

    def __init__(
        self, clock: Callable[[], float], *, stopwatch: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._stopwatch = stopwatch
        self.routes: dict[str, RouteMetrics] = {}
        self.mishaps = Mishaps(wall)
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def route(self, name: str) -> RouteMetrics:
        """The counters of a route; its name comes from the configuration, so there are few."""
        counts = self.routes.get(name)
        if counts is None:
            counts = self.routes[name] = RouteMetrics(name, self._clock, self._stopwatch, self.mishaps)
        return counts

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge of the whole process, whose value is asked for at every scrape."""
        self._gauges.append((name, help_text, read))

    def exposition(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        for instrument in _GAUGES:
            yield self._filled(GaugeMetricFamily, instrument)
        for instrument in _COUNTERS:
            yield self._filled(CounterMetricFamily, instrument)
        for instrument in _HISTOGRAMS:
            yield self._distribution(instrument)
        for name, help_text, read in self._gauges:
            yield GaugeMetricFamily(name, help_text, value=read())
        info = GaugeMetricFamily("sse_sidecar_info", "1, with the version that runs.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info

    def _filled(
        self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], instrument: _Instrument
    ) -> GaugeMetricFamily | CounterMetricFamily:
        name, help_text, attribute, label = instrument
        family = kind(name, help_text, labels=["route", label] if label else ["route"])
        for route, counts in self.routes.items():
            value = getattr(counts, attribute)
            for labels, number in _labelled(value) if label else [((), value)]:
                family.add_metric([route, *labels], number)
        return family

    def _distribution(self, instrument: _Instrument) -> HistogramMetricFamily:
        family = HistogramMetricFamily(instrument.name, instrument.help, labels=["route"])
        for route, counts in self.routes.items():
            histogram: Histogram = getattr(counts, instrument.attribute)
            family.add_metric([route], buckets=histogram.buckets(), sum_value=histogram.sum)
        return family


def _labelled(counter: Counter[str]) -> Iterable[tuple[tuple[str, ...], int]]:
    return (((value,), number) for value, number in counter.items())

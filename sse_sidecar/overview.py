"""What goes on in this process, as numbers: for the live page, and as JSON for whoever asks."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from sse_sidecar import __version__
from sse_sidecar.metrics import Delivered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sse_sidecar.clock import Clock
    from sse_sidecar.config import Settings
    from sse_sidecar.metrics import Metrics, Mishap, RouteMetrics
    from sse_sidecar.streams import Stream, Streams

MAX_LAGGING = 10
MAX_ACTIVE = 100
"""Streams that are listed, the latest first. There may be ten thousand, and no one reads them all."""

FRESH = 0.5
"""Seconds for which a snapshot is shown again: with ten thousand streams one takes some milliseconds."""


class _Lag(NamedTuple):
    events: int
    seconds: float
    stream: Stream


class Overview:
    """Looks at the streams, and at what has been counted. `wall` gives seconds since 1970."""

    def __init__(
        self,
        settings: Settings,
        streams: Streams,
        metrics: Metrics,
        clock: Clock,
        *,
        wall: Callable[[], float],
        ready: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self._streams = streams
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._ready = ready
        self._started = wall()
        self._made_at = float("-inf")
        self._made = b""

    def as_json(self) -> bytes:
        """The snapshot as JSON, in one line."""
        now = self._clock.time()
        if now - self._made_at >= FRESH:
            self._made_at, self._made = now, json.dumps(self.snapshot()).encode()
        return self._made

    def snapshot(self) -> dict[str, object]:
        routes = list(self._metrics.routes.values())
        return {
            "time": self._wall(),
            "version": __version__,
            "started": self._started,
            "ready": self._ready(),
            "limits": {"streams": self.settings.max_streams, "readers": self.settings.max_readers},
            "memory": {"held": self._streams.memory, "limit": self.settings.max_memory},
            **_totals(routes),
            "routes": [_of_route(counts) for counts in routes],
            "lagging": self._lagging(),
            "errors": [_of_mishap(mishap) for mishap in reversed(list(self._metrics.mishaps))],
            "active": [self._of_stream(stream) for stream in self._latest()],
        }

    def _latest(self) -> Iterable[Stream]:
        return islice(self._streams.latest(), MAX_ACTIVE)

    def _of_stream(self, stream: Stream) -> dict[str, object]:
        now = self._clock.time()
        return {
            "stream": stream.short,
            "route": stream.route,
            "method": stream.method,
            "state": stream.state.value,
            "readers": len(stream.readers),
            "first": stream.log.first,
            "last": stream.log.last,
            "bytes": stream.log.size,
            "age": round(now - stream.opened_at, 3),
            "quiet": round(now - stream.published_at, 3),
        }

    def _lagging(self) -> list[dict[str, object]]:
        most = heapq.nlargest(MAX_LAGGING, self._lags(), key=lambda lag: lag.events)
        return [
            {
                "stream": stream.short,
                "route": stream.route,
                "events": events,
                "seconds": round(seconds, 3),
            }
            for events, seconds, stream in most
        ]

    def _lags(self) -> Iterator[_Lag]:
        now = self._clock.time()
        for stream in self._streams.latest():
            for reader in stream.behind:
                if reader.cursor < stream.log.last:
                    yield _Lag(stream.log.last - reader.cursor, now - reader.wrote_at, stream)


def _totals(routes: list[RouteMetrics]) -> dict[str, object]:
    recent = Delivered(*map(sum, zip(*(counts.recent for counts in routes), strict=True)))
    return {
        "streams": _summed(counts.streams for counts in routes),
        "concurrent": sum(counts.concurrent for counts in routes),
        "unread": sum(counts.unread for counts in routes),
        "readers": sum(counts.readers for counts in routes),
        "events": {
            "received": sum(counts.events_received for counts in routes),
            "delivered": sum(counts.events_delivered for counts in routes),
            "replayed": sum(counts.events_replayed for counts in routes),
            "lost": sum(counts.lost for counts in routes),
            "duplicates": sum(counts.duplicates for counts in routes),
        },
        "bytes": {
            "received": sum(counts.bytes_received for counts in routes),
            "delivered": sum(counts.bytes_delivered for counts in routes),
        },
        "stalls": sum(counts.stalls for counts in routes),
        "heartbeats": sum(counts.heartbeats for counts in routes),
        "completion_rate": recent.completion_rate,
        "resumes": _summed(counts.resumes for counts in routes),
        "evictions": _summed(counts.evictions for counts in routes),
        "reconnect_ms": {
            "bounds": routes[0].reconnects.bounds,
            "counts": [sum(column) for column in zip(*(counts.reconnects.counts for counts in routes), strict=True)],
            "sum": sum(counts.reconnects.sum for counts in routes),
            "count": sum(sum(counts.reconnects.counts) for counts in routes),
        },
    }


def _of_route(counts: RouteMetrics) -> dict[str, object]:
    return {
        "name": counts.name,
        "streams": counts.concurrent,
        "readers": counts.readers,
        "received": counts.events_received,
        "delivered": counts.events_delivered,
        "replayed": counts.events_replayed,
        "lost": counts.lost,
        "duplicates": counts.duplicates,
        "stalls": counts.stalls,
        "errors": counts.errors.total(),
        "completion_rate": counts.completion_rate,
    }


def _of_mishap(mishap: Mishap) -> dict[str, object]:
    when, route, code, stream, times = mishap
    return {"time": when, "route": route, "code": code, "stream": stream, "count": times}


def _summed(counters: Iterable[Counter[str]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(total)

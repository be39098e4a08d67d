"""The client's clocks in a scenario: those of life, so many times faster."""

from __future__ import annotations

SCALE = 15
HEARTBEAT = 0.2
"""Seconds; less than its share, so that a machine that is busy for a moment is not taken for a link that stalls."""

WAITING = 15_000 / SCALE
RECONNECT = 30_000 / SCALE
"""Milliseconds of silence after which the client shows that it waits, and after which it comes anew."""

STALLS = {"waitingAfter": WAITING, "reconnectAfter": RECONNECT, "checkEvery": 5_000 / SCALE}

# Whole milliseconds, as the client waits: a third of one would be rounded off below what it is held to.
FIRST_DELAY = round(1_000 / SCALE)
JITTER = round(100 / SCALE)
BACK_OFF = {"minDelay": FIRST_DELAY, "maxDelay": 5_000 / SCALE, "jitter": JITTER}
"""They count where the service's own `retry` is lower: it is a floor for them."""

"""sse-sidecar: makes any Server-Sent Events stream resumable, from in front of it."""

__version__ = "0.1.0"

"""The same request to the service directly and through the sidecar: what comes back, and what arrives, is the same."""

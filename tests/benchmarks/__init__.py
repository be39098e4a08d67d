"""How fast the sidecar is, beside other servers on the same machine: `python -m tests.benchmarks`."""

"""`python -m sse_sidecar`."""

from sse_sidecar.cli import main

main()

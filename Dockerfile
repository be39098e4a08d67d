# A tag can be moved. What pins the base to its bytes is its digest, behind the tag as in `…-bookworm@sha256:…`:
# `docker buildx imagetools inspect python:3.13.9-slim-bookworm` prints it.
FROM python:3.13.9-slim-bookworm AS base

FROM base AS build
WORKDIR /src
COPY LICENSE README.md pyproject.toml ./
COPY sse_sidecar sse_sidecar
# The environment has no pip of its own: the image's installs into it. Wheels only, as there is no compiler.
RUN python -m venv --without-pip /opt/sse-sidecar \
    && pip --python /opt/sse-sidecar/bin/python install --no-cache-dir --only-binary=:all: .

FROM base
COPY --from=build /opt/sse-sidecar /opt/sse-sidecar
# The base has no byte code of the standard library, and a read-only container can never write any: what the sidecar
# and its health check import gets it here, so that no start and no check compiles it again.
RUN /opt/sse-sidecar/bin/sse-sidecar --version \
    && /opt/sse-sidecar/bin/python -c "import sse_sidecar.health" \
    && pip uninstall --yes --no-cache-dir pip
# By number, as Kubernetes' runAsNonRoot can check no name.
USER 10001:10001
ENV PYTHONDONTWRITEBYTECODE=1 \
    SSE_SIDECAR_LISTEN=0.0.0.0:8080 \
    SSE_SIDECAR_ADMIN_LISTEN=0.0.0.0:9464
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/opt/sse-sidecar/bin/python", "-m", "sse_sidecar.health"]
ENTRYPOINT ["/opt/sse-sidecar/bin/sse-sidecar"]

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sse-sidecar" \
      org.opencontainers.image.description="A reverse proxy that makes any Server-Sent Events stream resumable, with no change to the service and none to its clients." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

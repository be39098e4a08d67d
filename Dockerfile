FROM python:3.13-slim AS build
COPY . /src
RUN python -m venv /opt/sse-sidecar && /opt/sse-sidecar/bin/pip install --no-cache-dir /src

FROM python:3.13-slim
COPY --from=build /opt/sse-sidecar /opt/sse-sidecar
USER 65534
ENV SSE_SIDECAR_LISTEN=0.0.0.0:8080 SSE_SIDECAR_ADMIN_LISTEN=0.0.0.0:9464
EXPOSE 8080 9464
ENTRYPOINT ["/opt/sse-sidecar/bin/sse-sidecar"]

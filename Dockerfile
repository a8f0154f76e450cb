# The router and stargate-k8s-router: no shell wrapper, any user, read-only root file system, nothing writable.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements/run.txt requirements/otel.txt requirements/
RUN python -m venv /opt/router \
    && /opt/router/bin/python -m pip install --disable-pip-version-check --no-cache-dir --no-compile \
        -r requirements/run.txt -r requirements/otel.txt
COPY requirements/build.txt requirements/build.txt
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --disable-pip-version-check --no-cache-dir --no-compile -r requirements/build.txt
COPY pyproject.toml setup.py README.md ./
COPY certs certs
COPY tunnel_protocol tunnel_protocol
COPY router router
COPY kubernetes_router kubernetes_router
COPY stargate_client stargate_client
COPY llm_request_router llm_request_router
# Compiled, or the build fails; the compilers stay behind.
RUN LLM_ROUTER_COMPILE=require /opt/build/bin/python -m pip wheel --disable-pip-version-check --no-cache-dir --no-deps \
        --no-build-isolation --wheel-dir /build/wheels . \
    && /opt/router/bin/python -m pip install --disable-pip-version-check --no-cache-dir --no-deps /build/wheels/*.whl \
    && /opt/router/bin/python -m compileall -q /opt/router/lib

FROM python:3.12-slim
ARG COMMIT=unknown
ARG BUILD_VERSION=
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TMPDIR=/dev/shm STARGATE_COMMIT=$COMMIT STARGATE_BUILD_VERSION=$BUILD_VERSION PATH=/opt/router/bin:$PATH
COPY --from=build /opt/router /opt/router
# The paths that the chart names.
RUN ln -s /opt/router/bin/stargate /opt/router/bin/stargate-k8s-router /usr/local/bin/
USER 1000:1000
EXPOSE 8000 8080 50071 50072/udp 50073 9090
ENTRYPOINT ["/usr/local/bin/stargate"]
CMD []

# thriftree in a container: the gateway, vLLM's engine, and the default model, which is unpacked at build time, so that a
# container starts without a network. docs/deploy.md says more.
#   docker build --build-arg TORCH_INDEX=URL -t thriftree:0.1.0 .    URL: the index that PyTorch's site names for CPU builds
#   docker build --build-arg ENGINE=cuda -t thriftree:0.1.0-cuda .
ARG ENGINE=cpu
# To pin the base: its digest (python:3.11-slim-bookworm@sha256:...). A Debian 12 with Python 3.11 and its headers.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What runs. The engine compiles models, and we the tree-attention kernel, for the processor they find: a compiler stays.
FROM ${PYTHON_IMAGE} AS runtime-cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 thriftree \
    && useradd --create-home --uid 10001 --gid 10001 --shell /usr/sbin/nologin thriftree \
    && mkdir -p /home/thriftree/.cache /data \
    && chown thriftree:thriftree /home/thriftree/.cache /data
# Written to at run time, and nothing else: .cache (compiled code, downloaded models), /data (keys and quotas), /tmp.
ENV PATH=/venv/bin:$PATH \
    HOME=/home/thriftree \
    TRITON_CACHE_DIR=/home/thriftree/.cache/triton \
    THRIFTREE_MODELS=/models \
    THRIFTREE_LOG_FILE=- \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# CUDA's libraries come as wheels; the driver comes from the host, through NVIDIA's container toolkit.
FROM runtime-cpu AS runtime-cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006
FROM runtime-${ENGINE} AS build
ARG ENGINE
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /venv \
    && if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch==2.13.0 --index-url "$TORCH_INDEX"; fi
# The engine first, by the list in pyproject.toml: a changed source file then needs no new download.
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; \
print(*p['dependencies'], *e['$ENGINE'], *e['model'], *e['redis'], sep='\n')" > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps . \
    && python -m thriftree.zoo mend \
    && python -m thriftree.zoo prepare

# hadolint ignore=DL3006
FROM runtime-${ENGINE}
ARG ENGINE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="thriftree" \
      org.opencontainers.image.description="OpenAI-compatible gateway on an in-process vLLM engine (${ENGINE})" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /models /models
COPY --from=build /venv /venv
WORKDIR /home/thriftree
USER 10001:10001
VOLUME ["/home/thriftree/.cache", "/data"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, not ready: what watches this may replace the container, and one that loads a model or drains is well.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-ISc", \
    "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["thriftree", "serve"]
CMD ["--host", "0.0.0.0"]

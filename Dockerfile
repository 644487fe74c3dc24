# thriftree on a CPU: the gateway, vLLM's CPU engine, and the default model, which is unpacked at build time, so that a
# container starts without a network.
#   docker build --build-arg TORCH_INDEX=URL -t thriftree .      URL: the index that PyTorch's site names for CPU builds
#   docker run --rm -p 8000:8000 --shm-size 1g thriftree
FROM python:3.11-slim-bookworm
# The engine compiles models and the tree-attention kernel where it runs, so the compiler stays in the image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
# A volume on /home/thriftree/.cache keeps the compiled model; the folder exists, so that the volume is the user's.
RUN useradd --create-home --uid 10001 thriftree \
    && mkdir -p /models /home/thriftree/.cache && chown thriftree: /models /home/thriftree/.cache
WORKDIR /app
ARG TORCH_INDEX=
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 THRIFTREE_CACHE=/models
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch==2.13.0 --index-url "$TORCH_INDEX"; fi
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[cpu,model]" && python -m thriftree.zoo mend

USER 10001
ENV HOME=/home/thriftree
RUN python -m thriftree.zoo prepare
ENV HF_HUB_OFFLINE=1 THRIFTREE_LOG_FILE=- TORCHINDUCTOR_CACHE_DIR=/home/thriftree/.cache/compiled
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=180s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
ENTRYPOINT ["thriftree", "serve"]
CMD ["--host", "0.0.0.0"]

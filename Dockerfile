# Python, Java and Spark with the package: `docker run -v "$PWD:/work" IMAGE run --config mine.yaml`.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir uv==0.13.9 \
 && uv build --wheel --out-dir /dist .

FROM python:${PYTHON}-slim-bookworm
# Empty: the registry's torch, for GPUs. Without one: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=

# Spark's scripts call ps. Debian keeps only the newest of each version, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends openjdk-17-jre-headless procps \
 && rm -rf /var/lib/apt/lists/*

RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir uv==0.13.9 \
 && if [ -n "$TORCH_INDEX" ]; then \
      uv pip install --system --no-cache --constraint /constraints.txt --index-url "$TORCH_INDEX" torch torchvision; \
    fi \
 && for wheel in /dist/*.whl; do \
      uv pip install --system --no-cache --constraint /constraints.txt "${wheel}[spark,train,evaluate,report]"; \
    done

# For spark-submit: /opt/i2e/jobs/*.py.
COPY jobs /opt/i2e/jobs

RUN useradd --create-home --uid 10001 i2e \
 && install -d -o i2e /work
# A number, so that a cluster can see that it is not root.
USER 10001
WORKDIR /work
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["i2e"]
CMD ["--help"]

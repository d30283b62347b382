# CPU image:  docker build -t villa-dist .          GPU image: Dockerfile.gpu
# Try it:     docker run --rm -it --shm-size=1g villa-dist villa quickstart --set run=/tmp/quickstart
#
# The package index has torch's CUDA build, of gigabytes; with `--build-arg PIP_EXTRA_INDEX_URL=…`, PyTorch's index of CPU builds, the
# same version is installed without.
FROM python:3.11-slim-bookworm

# opencv, which lvis requires, links libGL; Kubernetes' probes of Ray call wget, Ray's launcher rsync.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 wget rsync \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 villa
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY constraints ./constraints
COPY shards ./shards
COPY villa_dist ./villa_dist
COPY cluster ./cluster
COPY configs ./configs

ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/villa \
    && /opt/villa/bin/pip install --no-cache-dir -c constraints/cpu.txt .

ENV PATH=/opt/villa/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_TRAIN_V2_ENABLED=1
USER 10001
CMD ["villa", "--help"]

# CPU image: docker build -t villa-dist .
# GPU image: docker build --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 --build-arg EXTRAS=gpu --build-arg CONSTRAINTS= -t villa-dist:gpu .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG EXTRAS=""
ARG CONSTRAINTS=constraints/cpu.txt

# opencv, which lvis requires, links libGL; a CUDA base brings no Python.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && (command -v python3 >/dev/null || apt-get install -y --no-install-recommends python3 python3-venv) \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 villa
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY constraints ./constraints
COPY shards ./shards
COPY villa_dist ./villa_dist
COPY cluster ./cluster
COPY configs ./configs

RUN python3 -m venv /opt/villa \
    && /opt/villa/bin/pip install --no-cache-dir ${CONSTRAINTS:+-c $CONSTRAINTS} ".${EXTRAS:+[$EXTRAS]}"

ENV PATH=/opt/villa/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
USER villa
ENTRYPOINT ["villa"]

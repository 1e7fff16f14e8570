# An image with this repository and its packages, for CPUs, NVIDIA GPUs or TPUs:
#   docker build --build-arg DEVICE=cuda -t invnext .      DEVICE: cpu (default), cuda or tpu
FROM python:3.12-slim
ARG DEVICE=cpu
WORKDIR /invnext
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY invnext_jax invnext_jax
COPY configs configs
COPY launch launch
RUN python3 -m venv .venv && . .venv/bin/activate \
    && pip install --require-hashes -r requirements.txt \
    && pip install --no-deps -e .
RUN . .venv/bin/activate && if [ "$DEVICE" != cpu ]; then pip install -e ".[$DEVICE]"; fi
ENV PATH=/invnext/.venv/bin:$PATH

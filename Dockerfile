# The image: one container for `docker run`, a SageMaker training job and plain boto3.
#
#   make image                                        torch as locked: CUDA 12.8, any driver from 525 on
#   docker build --build-arg TORCH_VERSION=2.14.0 .   another torch (2.11 and later bring CUDA 13: driver 580 or newer)
#
# `make image` passes the version and the git revision, which lorry.json shows.
#
# There are three stages: `builder` makes the environment (only it has a compiler and an installer), `package` adds this
# package, and the last stage copies what the two leave. The largest libraries come first and the package last, so that
# a change in src/ is built and pushed in seconds.
ARG BASE_IMAGE=debian:trixie-slim

FROM ${BASE_IMAGE} AS python
# No program may give its user more rights than the container has: no setuid or setgid bit stays.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/*.log \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +


FROM python AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv
COPY docker/build.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/build && /opt/build/bin/pip install --quiet --require-hashes --requirement /build/build.txt
ENV PATH=/opt/build/bin:$PATH UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=300
COPY requirements.txt docker/slim.sh /build/
# Another torch than the locked one takes its place with all that came with it; its own needs come without hashes.
ARG TORCH_VERSION=
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv --quiet --python /usr/bin/python3 /opt/venv \
    && uv pip install --python /opt/venv --require-hashes --requirement /build/requirements.txt \
        --build-constraint /build/build.txt \
    && if [ -n "$TORCH_VERSION" ]; then \
        uv pip freeze --python /opt/venv | sed -n -E 's/^((torch|triton|nvidia|cuda)(-[a-z0-9-]+)?)==.*/\1/p' \
            | xargs uv pip uninstall --python /opt/venv \
        && uv pip install --python /opt/venv "torch==$TORCH_VERSION"; \
    fi \
    && sh /build/slim.sh /opt/venv /layers


FROM builder AS package
WORKDIR /package
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN uv build --quiet --offline --wheel --no-build-isolation --python /opt/build/bin/python --out-dir /dist \
    && uv venv --quiet --python /usr/bin/python3 /opt/venv \
    && uv pip install --quiet --offline --no-deps --compile-bytecode --python /opt/venv /dist/*.whl \
    && mkdir /layer && cd / && cp --archive --parents opt/venv/bin/lorry opt/venv/lib/python3.*/site-packages/lorry* /layer
COPY --chmod=755 docker/train /layer/opt/venv/bin/train


FROM python
COPY --from=builder /layers/nvidia/ /
COPY --from=builder /layers/torch/ /
COPY --from=builder /layers/rest/ /

# The wheels bring CUDA; the driver comes from the host, through NVIDIA's container runtime.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# SageMaker's toolkit calls the trainer in its own process: signals reach it and its errors are told in full.
ENV SAGEMAKER_TRAINING_MODULE=lorry.container.train:main
# Caches go where any user may write, also when the rest of the file system is read-only; libraries want a user name.
ENV PATH=/opt/venv/bin:$PATH \
    LANG=C.UTF-8 \
    LOGNAME=lorry \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/tmp/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache

COPY --from=package /layer/ /

CMD ["train"]

ARG VERSION=0.1.0
ARG REVISION=unknown
ENV LORRY_REVISION=$REVISION
LABEL org.opencontainers.image.title="lorry" \
      org.opencontainers.image.description="A containerised LoRA trainer for text-embedding models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

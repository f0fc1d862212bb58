# The image of the chart's installer, and a way to run the client commands without installing anything.
#
# A container runtime cannot live in a container that it would have to start itself, so the chart's DaemonSet uses this
# image to lay crishim out on the node and to start it there as a systemd service. The base must be an interpreter built
# with PGO, as the official images and Debian's are: without it the server needs 10 to 20 % more CPU.
#
# `make image` builds it. BASE is any Debian with pip and a Python of 3.11 to 3.14.
ARG BASE=python:3.13-slim

FROM ${BASE} AS wheels
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY crishim crishim
# the node's own Python runs the server, so there are wheels for each release that it may have
RUN for release in 3.11 3.12 3.13 3.14; do \
        pip download --quiet --only-binary=:all: --python-version "$release" --dest "/wheels/$release" \
            --require-hashes -r requirements.lock || exit 1; \
    done \
    && pip download --quiet --only-binary=:all: --dest /wheels/pip pip \
    && pip wheel --quiet --no-deps --wheel-dir /wheels/crishim .

FROM ${BASE}
# protobuf falls back to pure Python, a hundred times slower, when libstdc++ is missing
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheels /wheels /wheels
RUN release=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
    && pip install --quiet --no-cache-dir --no-index --find-links "/wheels/$release" --find-links /wheels/crishim crishim
COPY packaging/install-on-node packaging/crishim.service /usr/local/share/crishim/
ENTRYPOINT ["crishim"]
CMD ["--help"]

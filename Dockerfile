# The program in a venv on a slim Python, run as uid 1000. No configuration, no credentials and no state are in the image:
#   docker build -t s3hashsync .
#   docker run --rm -v "$PWD/backup.yaml:/config/backup.yaml:ro" -v "$HOME/Documents:/data:ro" -v s3hashsync-state:/state s3hashsync plan
# Set `host:` in the configuration: a container's own host name changes with every run.
ARG BASE=python:3.13-slim

FROM ${BASE} AS builder
WORKDIR /src
# The brackets let the lock file be absent: a pattern may match nothing, a name may not.
COPY pyproject.toml README.md LICENSE requirements.loc[k] ./
COPY s3hashsync s3hashsync
COPY schema schema
RUN python3 -m venv /opt/s3hashsync \
 && if [ -f requirements.lock ]; then \
      /opt/s3hashsync/bin/python -m pip install --no-cache-dir --require-hashes -r requirements.lock \
      && /opt/s3hashsync/bin/python -m pip install --no-cache-dir --no-deps . ; \
    else \
      /opt/s3hashsync/bin/python -m pip install --no-cache-dir . ; \
    fi

FROM ${BASE}
COPY --from=builder /opt/s3hashsync /opt/s3hashsync
# The folders exist with their owner, so that a named volume mounted there belongs to the user.
RUN groupadd --gid 1000 s3hashsync \
 && useradd --uid 1000 --gid 1000 --create-home s3hashsync \
 && install -d -o 1000 -g 1000 -m 0700 /state \
 && install -d -o 1000 -g 1000 /config /restored
ENV PATH=/opt/s3hashsync/bin:$PATH \
    S3HASHSYNC_CONFIG=/config/backup.yaml \
    XDG_STATE_HOME=/state
VOLUME /state
WORKDIR /config
USER 1000:1000
ENTRYPOINT ["s3hashsync"]
CMD ["--help"]

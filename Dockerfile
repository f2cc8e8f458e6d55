# Selfsight in a container: images at /data, the folder that one works in at /work (docs/docker.md).
FROM python:3.12-slim

# A compiler is for torch.compile, which is used on GPUs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make g++ \
    && rm -rf /var/lib/apt/lists/*

# Where PyTorch comes from: PyPI, or the address of another index, which pytorch.org names
ARG TORCH_INDEX=""
ENV UV_EXTRA_INDEX_URL=$TORCH_INDEX UV_INDEX_STRATEGY=unsafe-best-match UV_NO_CACHE=1
WORKDIR /opt/selfsight
COPY . .
RUN make setup

# Any user may run it (docker run --user), so all may write the home and the two other folders.
RUN useradd --uid 1000 --create-home selfsight \
    && mkdir /data /work \
    && chmod 1777 /data /work /home/selfsight
ENV PATH=/opt/selfsight/.venv/bin:$PATH HOME=/home/selfsight USER=selfsight
USER selfsight
WORKDIR /work
VOLUME ["/data", "/work"]
ENTRYPOINT ["selfsight"]
CMD ["--help"]

# The README's two commands in a container. With a CPU:
#   docker build -t dmmlkd .
#   docker run --rm -v "$PWD/figures:/dmmlkd_ext/paper_figures/output/quick" dmmlkd
# With a GPU: take an image that has nvcc, and give the container the GPU:
#   docker build -t dmmlkd-cuda --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 .
#   docker run --rm --gpus all dmmlkd-cuda make test
# TORCH and TORCH_INDEX choose torch's wheel as they do for `make setup`, such as one for the CPU alone.
ARG BASE=ubuntu:24.04
FROM ${BASE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    build-essential ca-certificates git python3 python3-dev python3-venv make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /dmmlkd_ext
COPY . .
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
RUN make build TORCH="${TORCH}" TORCH_INDEX="${TORCH_INDEX}"
CMD ["make", "figures"]

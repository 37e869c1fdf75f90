# The HTTP server on a CPU.
#
#   docker build --tag modernbert .
#   docker run --publish 8080:8080 --volume modernbert-cache:/cache modernbert answerdotai/ModernBERT-base
#
# A model folder of the host: --volume $PWD/runs/sst2:/model:ro ... modernbert /model

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY modernbert modernbert
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
# The CPU kernels are compiled for the processor of the host by the first start; the volume keeps them and the models.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    wheel=$(ls /wheels/modernbert-*.whl) && pip install --no-cache-dir "${wheel}[serve]"
RUN useradd --uid 10001 --create-home modernbert && install --directory --owner modernbert --mode 700 /cache
USER 10001
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache
VOLUME /cache
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --start-interval=2s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["modernbert", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["answerdotai/ModernBERT-base"]

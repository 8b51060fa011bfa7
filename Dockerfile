# The demo, whole: docker build -t zippkit . && docker run --rm -v "$PWD/runs:/work/runs" zippkit
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libsndfile1 libgomp1 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY zippkit zippkit
COPY towers towers
COPY recipes recipes
# An index of CPU builds of torch makes the image a tenth as large: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir -c constraints.txt '.[all]'
WORKDIR /work
ENTRYPOINT ["zippkit"]
CMD ["demo"]

# cellwright for the CPU, without PyTorch: predicts, converts, evaluates, measures, exports, and serves the page.
# docs/install.md says how to build and run it; tests/test_places.py follows its steps.
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/cellwright
COPY requirements.predict.lock ./
RUN /opt/cellwright/bin/pip install --no-cache-dir --require-hashes -r requirements.predict.lock
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md ./
COPY src ./src
RUN /opt/cellwright/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index .

FROM python:3.12-slim-bookworm
COPY --from=build /opt/cellwright /opt/cellwright
RUN useradd --create-home --uid 1000 cellwright && mkdir /work && chown cellwright /work
ENV PATH=/opt/cellwright/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /work
USER cellwright
ENTRYPOINT ["cellwright"]
CMD ["--help"]

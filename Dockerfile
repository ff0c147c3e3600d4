# syntax=docker/dockerfile:1
# Two stages: uv builds the environment and the static files, the image that runs has neither uv nor development tools.
FROM python:3.11-slim-bookworm AS build

COPY --from=ghcr.io/astral-sh/uv:0.13 /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /app

# The environment before the code: it changes less often, so its layer is kept.
COPY pyproject.toml uv.lock README.md ./
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --no-default-groups --no-install-project

COPY manage.py ./
COPY posts ./posts
COPY subscribers ./subscribers
COPY newsletter ./newsletter
COPY templates ./templates
COPY locale ./locale

# collectstatic reads the settings, which refuse to start without these; nothing of them stays in the image.
RUN DATABASE_URL=postgres://build/none REDIS_URL=redis://build:6379/0 SECRET_KEY=build PEPPER=build \
    .venv/bin/python manage.py collectstatic --noinput --skip-checks


FROM python:3.11-slim-bookworm AS run

# The letters of the cards that stand for posts elsewhere.
RUN apt-get update && apt-get install --yes --no-install-recommends fonts-dejavu-core && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /app masthead \
    && install --directory --owner=masthead --group=masthead /app/media /app/spool
COPY --from=build /app /app
WORKDIR /app

ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MEDIA_ROOT=/app/media \
    SPOOL_DIR=/app/spool \
    GRANIAN_HOST=0.0.0.0 \
    GRANIAN_PORT=8000

USER masthead
VOLUME /app/media /app/spool
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["granian", "--interface", "wsgi", "--workers", "2", "--blocking-threads", "8", "newsletter.wsgi:application"]

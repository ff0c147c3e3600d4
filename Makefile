# Needs Python 3.11 or newer and make, nothing else: uv is fetched into .venv where it is not on PATH.
# The first that runs, not the first that is found: a version manager's shim may stand for a version it doesn't have.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$name; break; }; done)
UV := $(shell command -v uv || echo .venv/bin/uv)
RUN := $(UV) run --frozen

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-reset test faults check messages

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(UV)  ## Install everything into .venv
	@$(UV) sync --frozen --quiet

demo: setup  ## Run it all here: site, admin, workers and a mailbox (PORT, MAILBOX_PORT)
	@exec $(UV) run --frozen --no-sync manage.py demo

demo-reset:  ## Delete the demo's data
	@$(RUN) python -c "from newsletter.settings import SERVERS; SERVERS.remove()" && echo "The demo's data is gone."

test: setup  ## Run the tests on real PostgreSQL and Valkey
	@$(UV) run --frozen --no-sync pytest -n auto --dist loadfile

# A test that was skipped has shown nothing, so none may be.
faults: setup  ## Break everything, on purpose (SEEDS=n pairs of faults, FUZZ_EXAMPLES=n malformed requests a door)
	@report=$$(mktemp) && trap 'rm -f '$$report EXIT && \
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-1000} $(UV) run --frozen --no-sync pytest tests/faults -m "not services" -rs --junitxml=$$report && \
	{ ! grep -q 'skipped="[1-9]' $$report || { echo "Some tests were skipped: all of them have to run." >&2; exit 1; }; }

check: setup  ## Lint, types, layers, migrations
	@$(UV) run --frozen --no-sync ruff format --check . && $(UV) run --no-sync ruff check . && $(UV) run --no-sync mypy
	@$(UV) run --frozen --no-sync lint-imports && $(UV) run --no-sync djlint --lint templates --quiet
	@$(UV) run --frozen --no-sync manage.py makemigrations --check --dry-run

messages: setup  ## Collect what is said to readers, and compile the translations
	@$(UV) run --frozen --no-sync manage.py messages

.venv/bin/uv:
	@python='$(PYTHON)'; test -n "$$python" || { \
		echo "Masthead needs Python 3.11 or newer: install it, or set PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	test -x .venv/bin/pip || "$$python" -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check uv

# make demo        source to a routed request in a sealed room, with embedded defaults
# make test        every test; make test-fast: those that need no server, under two minutes
# make check       ruff, mypy --strict and the tests
# make bench       ratios against peers, in one run
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest

.PHONY: demo env test test-fast check lint types bench clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile | head -4

needs:
	@echo "what this machine needs:"; $(PYTHON) scripts/demo/needs.py
.PHONY: needs

env: $(VENV)/.ready

$(VENV)/.ready: vendor/requirements/torch.lock vendor/requirements/dev.lock scripts/make-env
	$(PYTHON) scripts/make-env $(VENV)
	@touch $@

demo: needs env
	@$(RUN) -m scripts.demo

test: env
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder --durations 15 $(if $(REPORTS),--junitxml=$(REPORTS)/tests.xml) $(TESTARGS)

test-fast: env
	$(PYTEST) -m "not slow and not server" -n 2 --dist loadfile tests/unit $(TESTARGS)

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: env
	$(VENV)/bin/mypy

check: lint types test

bench: env
	$(RUN) -m benchmarks

clean:
	rm -rf .demo .pytest_cache .mypy_cache .ruff_cache

# One word per habit. Everything runs from the tree with .venv; nothing is installed elsewhere.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench proto format clean

PYTHON_IN_VENV := .venv/bin/python
# Processes for tests: as many as there are cores, at most two (the tests start processes of their own).
WORKERS ?= 2

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## Make .venv with the pinned requirements (quick when nothing changed)
	@PYTHON="$(PYTHON)" scripts/setup

demo: setup ## Router, two workers and a mock engine at work; STAY=1 keeps them running
	@$(PYTHON_IN_VENV) -m stargate_client.demo $(if $(STAY),--stay)

test: setup ## All tests
	@$(PYTHON_IN_VENV) -m pytest -n $(WORKERS) --dist loadfile -q $(ARGS)

check: setup ## Format, lint, types, import directions, generated code
	@$(PYTHON_IN_VENV) -m ruff format --check .
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m mypy
	@$(PYTHON_IN_VENV) -m pytest -q tests/unit/test_import_directions.py
	@$(PYTHON_IN_VENV) -m tunnel_protocol.control.generate --check

bench: setup ## Benchmarks; ARGS names some of them
	@$(PYTHON_IN_VENV) -m benchmarks $(ARGS)

proto: setup ## Generate the protobuf code anew
	@$(PYTHON_IN_VENV) -m tunnel_protocol.control.generate

format: setup ## Format the code and mend what the linter can
	@$(PYTHON_IN_VENV) -m ruff format .
	@$(PYTHON_IN_VENV) -m ruff check --fix .

clean: ## Remove .venv and caches
	@rm -rf .venv .mypy_cache .ruff_cache

# One word per habit. Everything runs from the tree with .venv; nothing is installed elsewhere.
.DEFAULT_GOAL := help
.PHONY: help setup compile demo test cover matrix check fuzz chaos bench pictures docs proto format clean

PYTHON_IN_VENV := .venv/bin/python
# Processes for tests: on two cores one more than these, because tests wait for the processes they start.
WORKERS ?= 3
# Tests start hundreds of processes: each would compile the modules of the program again.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## Make .venv with the pinned requirements (quick when nothing changed)
	@PYTHON="$(PYTHON)" scripts/setup

compile: setup ## Compile the sources as they are now, unless that was done (changed sources run as written until then)
	@scripts/compile

demo: ## Router, two workers and a mock engine at work; STAY=1 keeps them running
	@PYTHON="$(PYTHON)" scripts/setup run
	@$(PYTHON_IN_VENV) -m stargate_client.demo $(if $(STAY),--stay)

test: setup ## All tests
	@$(PYTHON_IN_VENV) -m pytest -n $(WORKERS) --dist loadfile -q $(ARGS)

# Every branch of these is run by the unit and property tests and by those that run one part of the router on real sockets.
COVERED := router/registry/*,router/grpc/*,router/balancing/*,router/balancing/algorithms/*,router/proxy/*,router/http1/*,router/tunnels/*,router/control_plane/*,router/ports/*,tunnel_protocol/capnp*,tunnel_protocol/message_reader.py,tunnel_protocol/head.py,tunnel_protocol/framing.py,tunnel_protocol/raw_quic.py,tunnel_protocol/handshake.py,tunnel_protocol/quic/*
COVERING := tests/unit tests/property tests/integration tests/system/test_attempts.py tests/system/test_retries.py
cover: setup ## Branch coverage of all that requests and registrations pass through: complete, or it fails
	@LLM_ROUTER_PURE_PYTHON=1 $(PYTHON_IN_VENV) -m pytest -n $(WORKERS) --dist loadfile -q $(COVERING) --cov=router --cov=tunnel_protocol --cov-branch --cov-report=
	@$(PYTHON_IN_VENV) -m coverage report --include='$(COVERED)' --show-missing --skip-covered --fail-under=100
	@rm -f .coverage

matrix: ## Tests of one process on every Python found, and on the oldest dependencies; ARGS='3.12 lowest -- tests/unit'
	@UV="$(UV)" WORKERS=$(WORKERS) scripts/matrix $(ARGS)

check: setup ## Format, lint, types, import directions, generated code
	@$(PYTHON_IN_VENV) -m ruff format --check .
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m mypy
	@$(PYTHON_IN_VENV) -m pytest -q tests/unit/test_import_directions.py
	@$(PYTHON_IN_VENV) -m tunnel_protocol.control.generate --check

fuzz: setup ## Every decoder fed with mutations of a stored corpus; SECONDS=60 for each, ARGS='--decoder NAME'
	@$(PYTHON_IN_VENV) tests/fuzz/run.py --seconds $(or $(SECONDS),60) $(ARGS)

chaos: setup ## Attacks of all kinds beside honest load; SECONDS=600, ARGS='--attacks NAME,NAME'
	@$(PYTHON_IN_VENV) tests/chaos/mixture.py --seconds $(or $(SECONDS),600) $(ARGS)

bench: setup ## Benchmarks; ARGS names some of them
	@$(PYTHON_IN_VENV) -m benchmarks $(ARGS)

pictures: setup ## The pictures of the README (needs chromium)
	@scripts/pictures

docs: ## The pages of docs/ as a site in build/site; a broken link or anchor is an error
	@PYTHON="$(PYTHON)" scripts/docs

proto: setup ## Generate the protobuf code anew
	@$(PYTHON_IN_VENV) -m tunnel_protocol.control.generate

format: setup ## Format the code and mend what the linter can
	@$(PYTHON_IN_VENV) -m ruff format .
	@$(PYTHON_IN_VENV) -m ruff check --fix .

clean: ## Remove .venv, caches and what was built
	@rm -rf .venv .mypy_cache .ruff_cache build dist *.egg-info
	@find tunnel_protocol router -name '*.so' -delete  # of versions that compiled in place
	@rm -f *_compiled__mypyc*.so

# `make` alone lists what there is. Every target makes the virtual environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BEHAVIOUR := tests/runtime tests/lua tests/integrations
# What these hold is the same on every kind of store.
ANYWHERE := leaving threads calling lasting_threads threads_at_the_end isolation types guests home watchdog loop_budget
ELSEWHERE := $(foreach name,$(ANYWHERE),--ignore tests/runtime/test_$(name).py)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench bench-peers bench-results chaos clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' 2>/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' --group dev
	@touch $(READY)

demo: $(READY) ## run the example project on the embedded store: jobs, groups, limits, retries, ticks
	@$(BIN)/python -m asyncjobs demo

test: $(READY) lint ## format check, lint, types, architecture and every test, on each kind of store there is
	@$(BIN)/python -m pytest -n 4 --dist worksteal --ignore tests/faults/test_chaos.py --ignore tests/test_benchmarks.py
	@echo "--- the behaviour once more, on a Cluster"
	@ASYNCJOBS_TEST_TOPOLOGY=cluster $(BIN)/python -m pytest -q -n 4 --dist worksteal $(ELSEWHERE) $(BEHAVIOUR)
	@if command -v redis-server >/dev/null; then \
	  echo "--- and on $$(redis-server --version | cut -d' ' -f1-3)"; \
	  ASYNCJOBS_TEST_SERVER=$$(command -v redis-server) $(BIN)/python -m pytest -q -n 4 --dist worksteal $(ELSEWHERE) $(BEHAVIOUR); \
	fi
	@echo "--- the benchmarks run, and what they claim of counts and sizes holds"
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal tests/test_benchmarks.py
	@echo "--- chaos, with the machine to itself"
	@$(BIN)/python -m pytest -q tests/faults/test_chaos.py

lint: $(READY) ## only the static checks
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(READY) ## let ruff rewrite what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) ## measure throughput on this machine; python -m benchmarks --help for the rest
	@$(BIN)/python -m benchmarks.throughput

bench-peers: $(READY) ## an environment for each peer, in .bench-peers, for python -m benchmarks.peers
	@$(BIN)/python -m benchmarks.peers --install

bench-results: bench-peers ## measure everything, and draw it, into benchmarks/results; half an hour
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,bench]'
	@$(BIN)/python -m benchmarks $(if $(shell command -v redis-server),--server redis) --results benchmarks/results
	@$(BIN)/python -m benchmarks.plots

chaos: $(READY) ## kill, cut and freeze everything, and count what was lost
	@$(BIN)/python -m benchmarks.chaos

clean: ## remove what the targets made
	rm -rf $(VENV) .bench-peers .mypy_cache .pytest_cache .ruff_cache dist build

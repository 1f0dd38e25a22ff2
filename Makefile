# Everything installs what it needs. As root, on Debian or Ubuntu.

.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
ENVIRONMENT := .venv/.made

.PHONY: help lab lab-down venv demo test test-lab test-others check bench chaos soak nightly

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(ENVIRONMENT): pyproject.toml
	@lab/install.sh
	@test -x $(PYTHON) || python3 -m venv .venv
	@echo "Installing the Python environment"
	@.venv/bin/pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

venv: $(ENVIRONMENT) ## make .venv with the package and its test tools

lab: ## bring up the hosts src, dst and spare and a client, in containers
	@lab/up.sh

lab-down: ## remove the lab's containers and network (its image, its keys and Docker stay)
	@lab/down.sh

demo: venv lab ## a Redis moves there and back while a client counts
	@$(PYTHON) lab/demo.py

check: venv ## lint and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

test: venv lab check ## every test, those of the lab beside the others
	@$(MAKE) --no-print-directory -j2 -k test-lab test-others

# By lines, for the two write to one terminal.
test-lab test-others: SHELL := /bin/bash
test-lab:
	@set -o pipefail; $(PYTHON) -m pytest -m lab | sed -u ''
test-others:
	@set -o pipefail; $(PYTHON) -m pytest -m 'not lab' | sed -u ''

bench: venv lab ## blackout, stall and boundary, each beside what it is compared with
	$(PYTHON) -m tests.bench.blackout
	$(PYTHON) -m tests.bench.stall
	$(PYTHON) -m tests.bench.boundary
	$(PYTHON) -m tests.bench.streams
	$(PYTHON) -m tests.bench.criu
	$(PYTHON) -m tests.bench.redis
	$(PYTHON) -m tests.bench.connections
	$(PYTHON) -m tests.bench.throughput
	$(PYTHON) -m tests.bench.shipping

chaos: venv lab ## every fault point and action, cuts, restarts; all experiments and their mutants
	@mkdir -p results
	$(PYTHON) -m tests.chaos.sweep --json results/chaos.json
	STREAMFERRY_CHAOS=all $(PYTHON) -m pytest tests/chaos/test_partitions.py \
		tests/chaos/test_reboots.py tests/chaos/test_experiments.py

soak: venv lab ## 500 migrations there and back under 50 connections: nothing grows
	@mkdir -p results
	$(PYTHON) -m tests.chaos.soak --json results/soak.json

nightly: venv ## a million simulated migrations; fuzz the decoder of TCP streams for ten minutes
	$(PYTHON) -m tests.simulation --schedules 1000000
	STREAMFERRY_FUZZ_SECONDS=600 $(PYTHON) -m pytest tests/unit/test_stream_fuzz.py

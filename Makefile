# Every target says what it does: `make help`.
PYTHON ?= python3
VENV ?= .venv
.DEFAULT_GOAL := help
.PHONY: help run stop image check check-code check-hub check-rules check-service test test-floor bench bench-gpu docs clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{gsub(/[$$][$$]/, "$$", $$2); printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## set everything up and serve the lab on http://127.0.0.1:$${LAB_PORT:-8000} (LAB_DETACH=1: in the background)
	@$(PYTHON) share/setup/lab run

stop: ## stop the lab and its servers; homes stay
	@$(PYTHON) share/setup/lab stop

image: ## build the lab image (VARIANT=cpu or cuda)
	@share/images/build $(or $(VARIANT),cpu)

$(VENV)/bin/ruff: setup.cfg
	@$(PYTHON) -m venv $(VENV) && $(VENV)/bin/python -m pip install -q -e '.[test,dev]' && touch $@

check: $(VENV)/bin/ruff ## lint, types, import contracts, spelling and unit tests, under a minute on two cores
	@$(MAKE) --no-print-directory -k -j3 check-service check-rules check-hub check-code

check-code: ## of check: lint, types, import contracts, spelling
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo 2>/dev/null || $(VENV)/bin/lint-imports
	@$(VENV)/bin/codespell

# Without what needs an engine or other programs, and with a tenth of the examples that Hypothesis
# makes up; `make test` runs all of it.
QUICK = LAB_EXAMPLES=few $(VENV)/bin/python -m pytest -q \
    -m "not docker and not browser and not gpu and not slow and not programs"

check-service: ## of check: the unit tests of the service, which wait more than they compute
	@$(QUICK) tests/lab

check-hub: ## of check: the unit tests of the hub and of the commands
	@$(QUICK) tests/test_*.py

check-rules: ## of check: all other unit tests
	@$(QUICK) --ignore=tests/lab --ignore-glob='tests/test_*.py'

test: ## everything that can run on this machine; what it skips it names with the reason
	@share/setup/tests

test-floor: ## the same without a browser on the lowest supported JupyterHub and DockerSpawner
	@LAB_VENV=.venv-floor share/setup/floor

bench: $(VENV)/bin/ruff ## side-by-side figures, written to bench/results/
	@$(VENV)/bin/python -m tests.benchmarks

bench-gpu: $(if $(SITE),,$(VENV)/bin/ruff) ## first compiled step on a GPU host (ARGS="--image pytorch-spawner/lab:cuda"; or SITE= NODE=)
	@PYTHONPATH=$(SITE) $(if $(SITE),$(PYTHON),$(VENV)/bin/python) tests/gpu/first_step_run.py --out $(or $(OUT),bench/results/gpu) \
	    $(if $(SITE),--site $(SITE)) $(if $(NODE),--node $(NODE)) $(ARGS)

docs: $(VENV)/bin/ruff ## write the generated reference pages again
	@$(VENV)/bin/python docs/generate.py

clean: ## remove what make built here (not the images, not .lab)
	@rm -rf $(VENV) .venv-floor node_modules share/pytorch_spawner/static/vendor build dist *.egg-info

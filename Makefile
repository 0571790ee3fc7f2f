# Every target sets up what it needs by itself; `make help` lists them.

VENV ?= .venv
JOBS ?= 2
PREFIX ?= /opt/blackroad
DESTDIR ?=
EXTRAS ?= demo,pocl,nvidia,tui,history

PYTHON_IN := $(VENV)/bin/python
RUN_STAMP := $(VENV)/.blackroad-run
DEV_STAMP := $(VENV)/.blackroad-dev
CODE := blackroad tests $(wildcard bench)

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint sim mutants chaos fuzz abuse net-test bench bench-growth format install uninstall systemd-test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

$(RUN_STAMP): pyproject.toml
	@echo "setting up $(VENV) (once; some minutes on a slow network)"
	@tools/make-venv $(VENV) $(VENV)-setup.log -e '.[demo,pocl,tui]'
	@touch $@

$(DEV_STAMP): pyproject.toml | $(RUN_STAMP)
	@echo "setting up the test tools in $(VENV) (once)"
	@tools/make-venv $(VENV) $(VENV)-setup.log -e '.[demo,pocl,tui,dev]'
	@touch $(RUN_STAMP) $@

demo: $(RUN_STAMP) ## three daemons on this machine, a real job, one of them is killed
	@$(VENV)/bin/blackroad demo $(ARGS)

test: $(DEV_STAMP) ## the tests that need no hardware; ARGS="-k word" goes to pytest
	@$(PYTHON_IN) -m pytest -n $(JOBS) $(ARGS)

test-all: $(DEV_STAMP) ## the slow ones, too
	@$(PYTHON_IN) -m pytest -n $(JOBS) -m "" $(ARGS)

lint: $(DEV_STAMP) ## style, types, arrows between the folders, systemd units
	@$(PYTHON_IN) -m ruff check $(CODE)
	@$(PYTHON_IN) -m ruff format --check $(CODE)
	@$(PYTHON_IN) -m mypy
	@$(VENV)/bin/lint-imports --no-logo
	@tools/verify-units

format: $(DEV_STAMP) ## put the code into its form
	@$(PYTHON_IN) -m ruff check --fix-only $(CODE)
	@$(PYTHON_IN) -m ruff format $(CODE)

sim: $(DEV_STAMP) ## simulate clusters with faults: SEEDS=n of them, or SEED=k once more
	@$(PYTHON_IN) -m tests.sim --jobs $(JOBS) $(if $(SEED),--seed $(SEED) --options) \
		$(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

mutants: $(DEV_STAMP) ## break one rule after the other, and see that the simulator notices
	@$(PYTHON_IN) -m tests.sim mutants --jobs $(JOBS) $(ARGS)

chaos: $(DEV_STAMP) ## (root) real daemons under every fault: ROWS=1,5,9 SEED=k QUICK=1
	@$(PYTHON_IN) -m tests.chaos $(if $(ROWS),--rows $(ROWS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(QUICK),--quick) $(ARGS)

fuzz: $(DEV_STAMP) ## a member of the cluster says FRAMES=1000000 broken things, and disturbs nobody
	@$(PYTHON_IN) -m tests.fuzz $(if $(FRAMES),--frames $(FRAMES)) $(if $(SEED),--seed $(SEED))

abuse: $(DEV_STAMP) ## strangers against a closed cluster, with figures: ROWS=35,38
	@$(PYTHON_IN) -m tests.abuse $(if $(ROWS),--rows $(ROWS))

net-test: $(DEV_STAMP) ## (root) closed clusters in network namespaces: joining, firewalls, two networks
	@$(PYTHON_IN) -m pytest -n 0 -m "" tests/net $(ARGS)

bench: $(DEV_STAMP) ## beside other task systems: ARGS="--systems blackroad,zmq-raw --work noop --quick"
	@$(PYTHON_IN) -m bench $(ARGS)

bench-growth: $(DEV_STAMP) ## cost against size, with plots, for docs/performance.md
	@$(PYTHON_IN) -c 'import matplotlib' 2>/dev/null || $(PYTHON_IN) -m pip install -q matplotlib
	@$(PYTHON_IN) -m bench --growth $(ARGS)

install: ## (root) program, unit and configuration; PREFIX=/opt/blackroad, DESTDIR= only stages
	@tools/install '$(PREFIX)' '$(DESTDIR)' '$(EXTRAS)'

uninstall: ## (root) take it away again; configuration and state stay
	@tools/uninstall '$(PREFIX)' '$(DESTDIR)'

systemd-test: ## (root) install and run the service under a real systemd, in a tree of its own
	@tests/systemd/run

clean: ## remove the environment and everything made by tools
	@if [ -f '$(VENV)/pyvenv.cfg' ]; then rm -rf '$(VENV)'; fi
	@rm -rf build dist .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache '$(VENV)-setup.log'
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

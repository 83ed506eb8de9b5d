# Everything a developer types. Needs python3 (3.11 or later), make and git; all else goes into .venv.

PYTHON ?= python3
SEEDS ?= 1000
MINUTES ?= 5
ROUNDS ?= 1
EVENTS ?= 100000
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed-for-$(shell printf %s "$(CURDIR)" | cksum | cut -d " " -f 1)
PIP := $(PY) -m pip --disable-pip-version-check
CONSTRAINED := --quiet --constraint deploy/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install run test check format lint types layers tidy sim soak day cluster compare-libvirt test-vm bench test-xen schemas clean

help: ## Show what can be done
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 17

install: $(STAMP) ## Make or refresh the environment in .venv (done by the others as needed)

# The stamp's name tells the place: an environment that was copied or moved names programs that are elsewhere.
# Debian may come without ensurepip; then pip is fetched by a script of ours.
$(STAMP): pyproject.toml deploy/constraints.txt deploy/get_pip.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11"; exit 1; }
	@echo "Environment in $(VENV)"
	@$(PY) -c pass 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --default-pip >/dev/null 2>&1 \
		|| $(PY) deploy/get_pip.py deploy/constraints.txt
	@$(PIP) install $(CONSTRAINED) pip setuptools
	@$(PIP) install $(CONSTRAINED) --no-build-isolation --editable '.[dev]'
	@! pkg-config --exists libvirt 2>/dev/null || $(PIP) install $(CONSTRAINED) --no-build-isolation --editable '.[libvirt]' \
		|| echo "libvirt-python cannot be built; what needs it will be listed as NOT RUN"
	@rm -f $(VENV)/.installed-for-*
	@touch $@

run: $(STAMP) ## Start a cluster on this machine: leasehold up
	@$(VENV)/bin/leasehold up

test: $(STAMP) ## Run the whole suite
	@$(PY) -m pytest

check: lint types layers tidy ## Everything that can be said without running it, and the wheel

lint: $(STAMP)
	$(PY) -m ruff check .

format: $(STAMP) ## Bring the tree into the formatter's shape
	$(PY) -m ruff format .

types: $(STAMP)
	$(PY) -m mypy

layers: $(STAMP)
	$(PY) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))'

tidy: $(STAMP)
	$(PY) -m pytest -q tests/test_tidy.py tests/test_packaging.py

sim: $(STAMP) ## Simulate SEEDS runs of the core (1000), then see that its deliberate faults are found
	$(PY) -m tests.sim.run --seeds $(SEEDS)
	$(PY) -m tests.sim.mutations

soak: $(STAMP) ## Kill, stop and resume allocators under load for MINUTES (5); every answer is judged
	$(PY) -m tests.soak.takeover --minutes $(MINUTES)

day: $(STAMP) ## Kill every part under load until EVENTS (100000) are in the log; then ask the past, and hold it against brute force
	$(PY) -m tests.day --events $(EVENTS)

cluster: $(STAMP) ## Three servers under load: leaders killed, stepped down, cut off, all killed; every answer is judged
	$(PY) -m tests.cluster $(ROUNDS)

compare-libvirt: $(STAMP) ## Hold node devices against a real libvirtd's, here and on imitated machines; every difference with its reason
	@$(PY) -m tests.libvirt

bench: $(STAMP) ## Measure beside what the parts and others can do; OUT=docs/benchmarks.md writes it there, ARGS=--help
	@$(PIP) install $(CONSTRAINED) --no-build-isolation --editable '.[bench]' || echo "some peers will be missing"
	@$(PY) -m tests.bench $(if $(OUT),--write $(OUT)) $(ARGS)

test-vm: $(STAMP) ## Plug real devices in and out of a guest under QEMU, and see them in the ledger; ARGS=names of scenarios
	@$(PY) -m tests.vm $(ARGS)

test-xen: $(STAMP) ## Start domains on a real Xen under QEMU, give them cards, and see them in the ledger; ARGS=names of scenarios
	@$(PY) -m tests.xen $(ARGS)

schemas: $(STAMP) ## Write docs/asyncapi.json and docs/schemas/ anew from the types, unless that breaks what was published
	$(PY) -m tests.schemas.published
	$(PY) -m leasehold.services.describing docs

clean: ## Remove the environment and all that was built or cached
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

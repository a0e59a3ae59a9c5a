# Everything is built in $(VENV), from nothing but python3, git and make. `make` alone lists the targets.
#
# The package is installed, not linked: what runs is what a user gets from the wheel. Each change of a source installs it anew.

PYTHON ?= python3
VENV ?= .venv
VERSIONS := 3.11 3.12 3.13
TESTS ?=
BENCH ?=
WORKERS ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# Folders too, so that a removed file counts as a change.
SOURCES := $(shell find ftransfer -name __pycache__ -prune -o \( -type d -o -type f \) -print) README.md LICENSE
# Neither this folder nor a script's gets on sys.path, in child processes neither: `import ftransfer` means the installed one.
export PYTHONSAFEPATH := 1

.DELETE_ON_ERROR:
.PHONY: help demo test test-all check format bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## serve a folder, upload, download and verify: all of it in a few seconds
	@$(BIN)/ftransfer demo

test: $(VENV)/.installed $(VENV)/.test ## run the tests (TESTS='-k resume' or a file: only some; WORKERS=0: in one process)
	$(BIN)/pytest -n $(WORKERS) --maxprocesses 8 $(TESTS)

test-all: ## run the tests with each Python that is installed, of those supported
	@tested=; missing=; failed=; \
	for version in $(VERSIONS); do \
		found=; \
		for python in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; do \
			if "$$python" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" \
				2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then missing="$$missing $$version"; continue; fi; \
		echo "== Python $$version: $$found"; \
		if $(MAKE) --no-print-directory test PYTHON="$$found" VENV=.venv-$$version; \
			then tested="$$tested $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "== passed:$${tested:- none}; failed:$${failed:- none}; not installed, not tested:$${missing:- none}"; \
	[ -z "$$failed" ] && [ -n "$$tested" ]

check: $(VENV)/.installed $(VENV)/.dev ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=tests $(BIN)/mypy --package bench

format: $(VENV)/.dev ## format the sources and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(VENV)/.installed ## measure against nc, curl, rsync and scp (BENCH='--size 256M --runs 3'; BENCH=--help)
	@PYTHONPATH=tests $(BIN)/python -m bench $(BENCH)

docs: $(VENV)/.installed $(VENV)/.dev ## build the documentation, warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean: ## remove all that was built
	rm -rf .venv .venv-* build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find ftransfer tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ftransfer needs Python 3.11 or later; try: make PYTHON=python3.13" >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The build backend lives in the venv, so that installing after a change needs no network and takes a second.
$(VENV)/.backend: $(VENV)/.created pyproject.toml
	@$(PIP) install 'hatchling>=1.26'
	@touch $@

$(VENV)/.installed: $(VENV)/.backend $(SOURCES)
	@echo "installing ftransfer in $(VENV)"
	@$(PIP) install --no-build-isolation '.[tls]'
	@touch $@

# Only the tools of an extra; the package itself comes with .installed.
$(VENV)/.test: $(VENV)/.backend | $(VENV)/.installed
	@echo "installing the test tools in $(VENV)"
	@$(PIP) install --no-build-isolation '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.backend | $(VENV)/.installed
	@echo "installing the development tools in $(VENV)"
	@$(PIP) install --no-build-isolation '.[dev]'
	@touch $@ $(VENV)/.test

# make demo    an ensemble becomes one small model, with the report     make test    all tests
# Both set up .venv by themselves: torch, the other packages, the compiled extension. A second call sets up nothing again.
# make test-slow    the long tests that make test leaves out: kills, fuzzing, many odd models (up to 40 minutes)
# make test-page    the report's pages in a headless Chromium, with axe-core (needs chromium and npm)
# make packages    the wheel and the source distribution, built and tried in empty environments
#   TORCH=torch make demo    take the registry's newest torch (with CUDA) instead of the pinned one

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Python compiles the modules that are imported; pip would compile all 19 000 of the packages, for some 46 s. The
# compiled modules must be kept: without them each of the tests' processes compiles torch and all else again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check
# Two jobs: the extension is compiled while packages are installed, and `make lint test` runs the linters beside the tests.
MAKEFLAGS += -j2
SOURCES := setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.def')

.PHONY: demo test test-slow test-page packages setup lint format bench docs clean
.DEFAULT_GOAL := demo

demo: setup
	$(BIN)/ensdistill run examples/digits.yaml

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

setup: .venv/.installed .venv/.built

.venv/.built: .venv/.torch $(SOURCES)
	@echo "building the extension (a minute or two) ..."
	@mkdir -p build && $(BIN)/python setup.py -q build_ext --inplace >build/log 2>&1 || { cat build/log; exit 1; }
	@touch $@

# torch comes before everything that needs it: pinned exactly, because a bare torch would bring gigabytes of CUDA; and without
# build isolation, which would fetch another one. The extension needs no other package, so it is compiled while they come.
.venv/.torch: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ensdistill needs Python 3.11 or newer ($(PYTHON) is older, or missing). Install it, or say which: make PYTHON=python3.12"; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || \
	  { echo "ensdistill needs a C++17 compiler. Debian/Ubuntu: apt-get install g++   Fedora: dnf install gcc-c++   macOS: xcode-select --install"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || \
	  { echo "ensdistill needs Python's headers (Python.h). Debian/Ubuntu: apt-get install python3-dev   Fedora: dnf install python3-devel"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "python's venv module is missing. Debian/Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing $(TORCH) into .venv ..."
	@$(PIP) '$(TORCH)' numpy 'setuptools>=77' 'setuptools-scm>=8' wheel ninja || \
	  { echo "$(TORCH) can't be installed. Name a build that your platform has: make TORCH='torch==2.12.0'"; exit 1; }
	@touch $@

.venv/.installed: .venv/.torch
	@echo "installing the other packages ..."
	@ENSDISTILL_SKIP_EXTENSION=1 $(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

# The rules for accessible pages that tests/report/test_report_browser.py applies, in Chromium.
build/axe.min.js:
	@mkdir -p build/axe && cd build/axe && npm pack --silent axe-core@4.14.1 >/dev/null && tar -xzf axe-core-4.14.1.tgz && \
	  mv package/axe.min.js .. && cd .. && rm -r axe

test-page: setup build/axe.min.js
	$(BIN)/python -m pytest -n 0 -m slow tests/report/test_report_browser.py

# The wheel and the source distribution, built and tried in empty environments:  make packages PYTHON=python3.12 TORCH=torch==2.12.0
packages:
	tests/packages.sh $(PYTHON) $(TORCH)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(filter-out setup.py,$(SOURCES)) ensdistill/bench/floor.cpp

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter-out setup.py,$(SOURCES)) ensdistill/bench/floor.cpp

bench: setup
	$(BIN)/python -m benchmarks kernels

# The site, into build/site; a broken link is an error. Its tools are installed at the first call.
docs: setup
	@$(BIN)/python -c 'import material, mkdocs_jupyter, mkdocstrings_handlers.python' 2>/dev/null || $(PIP) --no-build-isolation -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

clean:
	rm -rf build ensdistill/*.so .venv/.built

# Two commands set everything up: `make dream` trains Pong end to end, `make test` checks the project.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

GAME ?= Pong
PRESET ?= quick
SEED ?= 0
OUT ?= runs/pong
SMOKE := build/smoke
MINUTES ?= 30

# Two workers with one thread each: tests are many small operations, which threads only slow down.
TEST_JOBS ?= 2
# Notebooks take DREAMGYM_MINUTES: less than one only shows that they run.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 SDL_VIDEODRIVER=dummy DREAMGYM_RUN=$(abspath $(SMOKE)) DREAMGYM_MINUTES=0.05

.DEFAULT_GOAL := help
.PHONY: help venv dream ship wheel docs test soak lint smoke browser bench clean

help:
	@echo "make venv    create $(VENV) and install dreamgym with everything that development needs"
	@echo "make dream   train $(GAME) (preset $(PRESET), seed $(SEED)) into $(OUT), or go on where it stopped"
	@echo "make ship    put the finished run in $(OUT) into the package, as the dream that $(GAME)'s id finds after an install"
	@echo "make wheel   build dist/: the wheel and the source distribution, shipped dreams included"
	@echo "make docs    build/docs: the documentation as pages, from docs/ and the docstrings"
	@echo "make test    lint, types, tests with coverage, notebooks"
	@echo "make soak    runs and dreams under ill-treatment for MINUTES=$(MINUTES), at random from SEED= (printed if not given)"
	@echo "make bench   speed of this machine and of the dream on it"
	@echo "make lint    ruff and pyright alone"
	@echo "make browser install Chromium, in which pages are tested, where it is not there (Debian and its like)"
	@echo "make clean   remove caches and build products ($(VENV) and runs/ stay)"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dreamgym needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,notebooks,play]' -c constraints.txt
	@touch $@

dream: venv
	$(BIN)/dreamgym train --game $(GAME) --preset $(PRESET) --seed $(SEED) --out $(OUT) $(if $(wildcard $(OUT)/config.json),--resume)

ship: venv
	$(BIN)/dreamgym export $(OUT) --out dreamgym/weights/$(GAME).safetensors

# What earlier builds left in build/lib would end up in the wheel.
wheel: venv
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" >/dev/null
	@ls -l dist

docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "build/docs/index.html"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# A whole run at the smallest size: the tests and the notebook read it, and it counts towards coverage.
smoke: venv
	rm -rf $(SMOKE) .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m dreamgym train --game Pong --preset smoke --seed 0 --device cpu --out $(SMOKE)

# The tests open pages in it. Packages of the system are only installed where that needs no password.
browser:
	@if command -v chromedriver >/dev/null && command -v chromium >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as=""; elif sudo -n true 2>/dev/null; then as="sudo"; else as="none"; fi; \
	if [ "$$as" = none ] || ! command -v apt-get >/dev/null; then \
		echo "The tests need chromium and chromedriver on the PATH, and this make may not install them here." >&2; \
		echo "On Debian: sudo apt-get install chromium chromium-driver" >&2; exit 1; fi; \
	$$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null

test: lint smoke browser
	$(TEST_ENV) $(BIN)/pytest -n $(TEST_JOBS) --nbmake --cov --cov-append --cov-report=term --cov-fail-under=90 tests notebooks

bench: venv
	$(BIN)/python tests/benchmarks/bench.py

# Not SEED, whose default is that of a run: without one given here each soak draws its own.
soak: venv
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.soak --minutes $(MINUTES) \
		$(if $(filter command line environment,$(origin SEED)),--seed $(SEED))

clean:
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .ruff_cache .hypothesis
	find dreamgym agents tests -name __pycache__ -type d -prune -exec rm -rf {} +

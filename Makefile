# Everything happens in .venv, which the first target that needs it creates and which is reused until setup.cfg,
# pyproject.toml or constraints.txt changes.
#
#   make demo        the whole chain on the toy band: synthesise, tokenize, fit, generate, score (DEMO_ARGS="--minutes 30")
#   make test        the tests that take seconds (PYTEST_ARGS="-k layout")
#   make test-avx2   those tests that depend on the processor, as on one with AVX2 and no more
#   make test-triton the GPU's attention kernels in Triton's interpreter, on the CPU (Linux; the package unpacks to 1 GB)
#   make test-all    also the slow ones, among them the page in a real browser
#   make faults      the fault suite: kills, full disks, damaged files, fuzzing; under an hour (FAULTS_ARGS="--seed 1")
#   make long        the long runs: 20,000 steps, 2,000 requests of the app, an hour of live streaming
#   make mutants     are the tests of a module blind to a change in it (MUTANTS_ARGS="modeling/layout.py")
#   make docs        the documentation as a site in docs/_build/html; a warning is an error (Python 3.11 or newer)
#   make coverage    the tests with the branches of the core that they reach; 92 % are needed
#   make lint        ruff: rules and formatting
#   make typecheck   mypy --strict on the package
#   make install     only the environment
#
# TORCH_INDEX=URL adds a package index, such as PyTorch's CPU one (docs/how_to/install.md). PYTHON=... picks the interpreter.

VENV := .venv
BIN := $(VENV)/bin
PROJECT_FILES := setup.cfg pyproject.toml constraints.txt

# The first interpreter of a supported version; named explicitly, PYTHON is taken as it is.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)
TORCH_INDEX ?=
TRITON ?= triton==3.9.0
PYTEST_ARGS ?=
DEMO_ARGS ?=
FAULTS_ARGS ?=
MUTANTS_ARGS ?=
JOBS ?= 2

PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# Compiled modules are kept whatever the shell says: dozens of the tests' children import the package.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

.PHONY: help install demo test test-avx2 test-triton test-all faults long mutants docs coverage lint typecheck
.DEFAULT_GOAL := help

help:
	@sed -n '/^#  /s/^#   //p' Makefile

install: $(VENV)/.installed

demo: install
	$(BIN)/python -m hafm_lightning demo $(DEMO_ARGS)

test: install
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# What oneDNN and PyTorch do on processors without AVX-512. The compiled step and functions are LLVM's: they follow the
# processor at hand whatever is set here.
test-avx2: install
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "cpu and not slow" $(PYTEST_ARGS)

# The variable must be set before Triton is first imported: a process of their own.
test-triton: $(VENV)/.installed-triton
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels/test_triton_attention.py tests/kernels/test_step_kernels.py \
		tests/kernels/test_fused_step.py tests/kernels/test_triton_ddp.py $(PYTEST_ARGS)

test-all: $(VENV)/.installed-app test-triton
	$(PYTEST) $(PYTEST_ARGS)

# Prints the table (kind, tries, held) and writes it into docs/faults.md; then the parsers with many made-up inputs.
faults: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/run.py --jobs $(JOBS) --docs $(FAULTS_ARGS)
	HAFM_FUZZ_EXAMPLES=500 $(PYTEST) tests/faults/test_fuzz.py

long: $(VENV)/.installed-app
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/faults/test_long.py $(PYTEST_ARGS)

mutants: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/mutants.py $(MUTANTS_ARGS)

docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fresh-env --fail-on-warning --quiet --builder html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Fails below the `fail_under` of pyproject.toml, which also lists the modules. Children of the tests are not measured.
coverage: install
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -m "not slow" $(PYTEST_ARGS)
	$(BIN)/python -m coverage report

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: install
	$(BIN)/mypy

# An interpreter that no longer starts (a moved checkout, a removed Python) is replaced.
$(VENV)/.installed: $(PROJECT_FILES)
	@test -n "$(PYTHON)" || { echo "hafm_lightning needs Python 3.10 to 3.13; none was found: install one, or say which: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) could not create $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "Installing into $(VENV); PyTorch alone is 200 MB (CPU build) to several GB (CUDA build)"
	@$(PIP_INSTALL) --editable '.[dev,listen]'
	@touch $@

$(VENV)/.installed-app: $(VENV)/.installed
	@$(PIP_INSTALL) --editable '.[dev,listen,app,ray,htdemucs,musdb,docs]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make docs needs Python 3.11 or newer: make docs VENV=.venv-docs PYTHON=python3.11" >&2; exit 2; }
	@$(PIP_INSTALL) --editable '.[dev,listen,docs]'
	@touch $@

# PyTorch's CUDA builds bring the Triton that fits them, so constraints.txt cannot pin it: what is there stays.
$(VENV)/.installed-triton: $(VENV)/.installed
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP_INSTALL) '$(TRITON)'
	@touch $@

# Two commands do everything on a fresh machine: `make figures` and `make test`. `make help` lists the rest.

PYTHON ?= python3
# The torch that is installed where .venv has none. Elsewhere than in a plain environment a CPU wheel may need an
# index of its own: make setup TORCH_INDEX=<address>
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# What figures are drawn from: runs, or results, the tables of the profile full in paper_figures/results.
FROM ?= runs
PROFILE ?= $(if $(filter results,$(FROM)),full,quick)
# What the runs behind the figures are simulated on: cpu, cuda, cuda:N or auto.
DEVICE ?= cpu
# One benchmark, e.g. ONLY=pairwise_kl; all where it is empty.
ONLY ?=
BENCHMARKS = $(if $(ONLY),tests/benchmarks/test_bench_$(ONLY).py,tests/benchmarks)
# KEEP=1 puts what `make tune` chooses in the place of the committed settings.
KEEP ?=
# Processes that run the tests; each of them computes on one thread.
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# As csrc/cuda/build.py looks for it: in CUDA_HOME, on PATH, in the usual folders.
NVCC := $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda*/bin/nvcc))

CPP_SOURCES = $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.inl csrc/*/*.cu csrc/*/*.cuh)
COMPILED = $(filter-out csrc/emulation/% csrc/cuda/%,$(filter %.cpp,$(CPP_SOURCES)))
BUILD_INPUTS = setup.py $(CPP_SOURCES)

.DEFAULT_GOAL := help
.PHONY: help setup build wheels test lint pytest bench bench-compare figures tune figure-% table-% cuda-check gpu-check sanitize docs clean FORCE

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-15s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## make .venv with torch, the package and its tools
build: $(VENV)/.built ## build the native extension

wheels: $(VENV)/.built ## build into dist/ the wheel that fits every Python and torch that pyproject.toml allows
	rm -rf build/lib* build/bdist* # setuptools would pack what older versions have left there
	PATH="$(CURDIR)/$(BIN):$$PATH" DMMLKD_BUILD=cpu $(RUN) setup.py --quiet bdist_wheel --dist-dir dist

test: lint pytest cuda-check ## lint, type-check, test, compile the CUDA kernels, draw the smoke figures
	$(RUN) -m paper_figures.make --profile smoke

lint: $(VENV)/.installed ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

pytest: $(VENV)/.built ## run the tests alone
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal --ignore=tests/benchmarks

bench: $(VENV)/.built ## compare each kernel with its references and the machine's limit; keeps the table (ONLY=pairwise_kl)
	$(RUN) -m pytest -q $(BENCHMARKS) --results --benchmark-columns=min,median

bench-compare: $(VENV)/.built ## run the benchmarks and print what changed against the newest stored results
	$(RUN) -m pytest -q $(BENCHMARKS) --results --results-folder build/benchmarks --benchmark-columns=min,median
	$(RUN) -m tests.benchmarks.compare build/benchmarks

figures: $(VENV)/.built ## run what is missing and draw every table and figure (PROFILE=smoke|quick|full, FROM=results, DEVICE=cuda)
	$(RUN) -m paper_figures.make --profile $(PROFILE) --from $(FROM) --device $(DEVICE)

figure-%: $(VENV)/.built ## draw one figure, e.g. figure-convergence
	$(RUN) -m paper_figures.make --profile $(PROFILE) --from $(FROM) --device $(DEVICE) --only figure_$(subst -,_,$*)

table-%: $(VENV)/.built ## draw one table, e.g. table-accuracy
	$(RUN) -m paper_figures.make --profile $(PROFILE) --from $(FROM) --device $(DEVICE) --only table_$(subst -,_,$*)

tune: $(VENV)/.built ## search every method's settings on validation data; KEEP=1 replaces the committed ones
	$(RUN) -m paper_figures.tune $(if $(KEEP),--keep)

cuda-check: $(VENV)/.built ## compile the CUDA kernels; needs nvcc, neither a GPU nor a CUDA build of torch
ifeq ($(NVCC),)
	@echo "cuda-check: skipped, there is no nvcc"
else
	$(RUN) csrc/cuda/build.py
endif

gpu-check: ## build, test, sanitize and measure on a GPU, in 8 minutes; installs nothing (DRY=1: on a CPU what it can do)
	PYTHON="$(if $(wildcard $(RUN)),$(RUN),$(PYTHON))" tests/cuda/on_device.sh $(if $(DRY),--dry-run)

sanitize: $(VENV)/.installed ## test the CPU operators built with AddressSanitizer and UndefinedBehaviorSanitizer
	tests/sanitize.sh $(RUN)

docs: $(VENV)/.docs ## build the documentation site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean: ## remove what was built and installed, not the results of runs
	rm -rf $(VENV) build dist *.egg-info dmmlkd_ext/_*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip setuptools wheel

# A torch that is there and suitable is kept, whatever it was built for. The file is written anew only when it says
# something new, so that the extension is built again for another torch, and not otherwise.
TORCH_HERE = $(RUN) -c "import importlib.metadata, sys; version = importlib.metadata.version('torch'); \
  print(sys.version, version); sys.exit(not (2, 11) <= tuple(map(int, version.split('.')[:2])) < (2, 15))"
$(VENV)/.torch: $(VENV)/bin/python FORCE
	@$(TORCH_HERE) >$@.now 2>/dev/null || \
	  { $(PIP) install "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) && $(TORCH_HERE) >$@.now; }
	@if cmp -s $@.now $@; then rm $@.now; else mv $@.now $@; fi

# Of what the build says: the file that ninja compiled, and why there is no extension if there is none.
ONE_LINE_PER_FILE = /^\[[0-9]+\/[0-9]+\] / { for (i = 2; i < NF; i++) if ($$i == "-c" && $$(i + 1) ~ /cpp$$/) { file = $$(i + 1); \
  sub(/.*csrc\//, "csrc/", file); print "  " $$1, file; fflush() } } /^dmmlkd_ext: no /, /^$$/ { print; fflush() }

# The extension is built by the next rule, so that a change of metadata does not compile anything.
$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(PIP) install "setuptools>=77" "ninja>=1.11,<2" wheel
	DMMLKD_BUILD=none $(PIP) install --no-build-isolation --editable ".[dev]"
	touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.installed
	DMMLKD_BUILD=none $(PIP) install --no-build-isolation --editable ".[docs]"
	touch $@

$(VENV)/.built: $(BUILD_INPUTS) $(VENV)/.torch | $(VENV)/.installed
	@echo "building the native extension: $(words $(COMPILED)) files, 1 to 4 minutes on 2 cores; all that is said is in build/log.txt"
	@mkdir -p build
	@{ PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) setup.py --quiet build_ext --inplace; echo "exit code $$?"; } 2>&1 \
	  | tee build/log.txt | awk '$(ONE_LINE_PER_FILE)'
	@tail -n 1 build/log.txt | grep -qx "exit code 0" || { tail -n 40 build/log.txt; exit 1; }
	@test -e dmmlkd_ext/_not_built.txt || touch $@ # else the next call tries again

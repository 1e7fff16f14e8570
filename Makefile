# `make demo` and `make test` work on a fresh machine with Python 3.11 to 3.13; nothing else is needed.
# Any variable can be set on the command line: make demo OUT=runs/other SEED=1

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo
SEED ?= 0
DEMO_VIDEOS ?= 2000
DEMO_VAL_VIDEOS ?= 500
DEMO_STEPS1 ?= 300
DEMO_STEPS2 ?= 200
DEMO_FLAGS1 ?=
DEMO_FLAGS2 ?=
DEMO_EVAL_FLAGS ?=
DEMO_BASELINE_FLAGS ?=
PYTEST_FLAGS ?= -n auto --dist worksteal
BENCHMARK_FLAGS ?=
GPU_FLAGS ?=
LOCK_FLAGS ?=
TORCH ?= 2.13.0
TRANSFORMERS ?= 5.23.0

RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip --disable-pip-version-check install --quiet
AUDIT = $(VENV)/bin/uvx pip-audit --strict --progress-spinner=off --disable-pip --require-hashes
RUNTIME = $(VENV)/.installed-runtime
PACKAGE = $(VENV)/.installed-package
TEST = $(VENV)/.installed-test
PARITY = $(VENV)/.installed-parity
TPU_COMPILER = $(VENV)/tpu/.installed
LIBTPU = `$(RUN) -c 'import importlib.metadata as m; print(next(r.split(";")[0].strip() for r in m.requires("jax") if r.startswith("libtpu")))'`

.PHONY: demo test test-parity test-compiler references lint docs lock audit clean benchmark gpu-check
.DELETE_ON_ERROR:

# Trains and evaluates both stages on the synthetic world. A killed line resumes when it is repeated.
demo: $(PACKAGE)
	$(RUN) launch/make_world.py --out=$(OUT)/world --split=train --videos=$(DEMO_VIDEOS) --anticipation_videos=$(DEMO_VIDEOS) --seed=$(SEED)
	$(RUN) launch/make_world.py --out=$(OUT)/world --split=val --videos=$(DEMO_VAL_VIDEOS) --anticipation_videos=$(DEMO_VAL_VIDEOS) --seed=$(SEED)
	$(RUN) launch/main.py --config=configs/stage1.py:tiny --workdir=$(OUT)/s1 --config.seed=$(SEED) --config.data.manifest=$(OUT)/world/train.csv --config.total_steps=$(DEMO_STEPS1) $(DEMO_FLAGS1)
	$(RUN) launch/main.py --config=configs/stage2.py:tiny --workdir=$(OUT)/s2 --config.seed=$(SEED) --config.data.manifest=$(OUT)/world/train.csv --config.total_steps=$(DEMO_STEPS2) --config.init_from=$(OUT)/s1 $(DEMO_FLAGS2)
	$(RUN) launch/export.py --checkpoint=$(OUT)/s2 --out=$(OUT)/encoder.safetensors --overwrite
	$(RUN) launch/evaluate.py --config=configs/eval/world.py --checkpoint=$(OUT)/s1 --workdir=$(OUT)/e1 --config.data.root=$(OUT)/world --config.controls=False $(DEMO_EVAL_FLAGS)
	$(RUN) launch/evaluate.py --config=configs/eval/world.py --checkpoint=$(OUT)/s2 --workdir=$(OUT)/e2 --config.data.root=$(OUT)/world $(DEMO_EVAL_FLAGS) $(DEMO_BASELINE_FLAGS)
	$(RUN) launch/evaluate.py --config=configs/eval/world.py --checkpoint=invnext_jax/assets/encoder_tiny_world.safetensors --workdir=$(OUT)/study_encoder --config.data.root=$(OUT)/world --config.controls=False --config.evaluators="('linear_probe','knn')"
	$(RUN) launch/report.py $(OUT)/s1 $(OUT)/s2 $(OUT)/e1 $(OUT)/e2 $(OUT)/study_encoder --out=$(OUT)/report.html

test: $(TEST)
	$(RUN) -m pytest $(PYTEST_FLAGS)

# Compares with PyTorch and transformers, and both with the stored references that `make test` uses.
test-parity: $(PARITY)
	$(RUN) -m pytest $(PYTEST_FLAGS) --live -m parity

# Compiles attention kernels for a TPU with its real compiler, which is downloaded (0.7 GB) but needs no TPU.
test-compiler: $(TEST) $(TPU_COMPILER)
	JAX_PLATFORMS=cpu PYTHONPATH=$(VENV)/tpu $(RUN) -m pytest -k compiler tests/planning/test_targets.py

# Computes and stores all references again, for example after a change of TRANSFORMERS or of a parity test.
references: $(PARITY)
	rm -rf tests/fixtures/parity
	$(RUN) -m pytest --write-references --slow -m parity

lint: $(TEST)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

# Regenerates the pages and the drawing that are made from the source; tests compare them with it.
docs: $(PACKAGE)
	$(RUN) docs/scripts/generate_options.py
	$(RUN) docs/scripts/generate_presets.py
	$(RUN) docs/scripts/draw_imports.py

# Compares the training step with a PyTorch step on this machine's CPU. The last line is JSON.
benchmark: $(PARITY)
	$(RUN) -m benchmarks.step $(BENCHMARK_FLAGS)

# Writes docs/performance-gpu.md in at most 8 minutes. Needs a GPU and a Python with jax[cuda13], flax, optax, einops,
# numpy and ml_collections; with torch and transformers, it also measures PyTorch: make gpu-check PYTHON=/path/to/python
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check $(GPU_FLAGS)

# Compiles both requirement files for every supported Python and platform. The full set comes first, because
# Beam needs older versions of some packages; the small set then uses the same versions. LOCK_FLAGS=--upgrade renews both.
lock: $(PACKAGE)
	$(PIP) uv
	$(VENV)/bin/uv pip compile $(LOCK_FLAGS) --universal --python-version 3.11 --generate-hashes --no-header -q pyproject.toml --extra test --extra prepare -o requirements-test.txt
	$(VENV)/bin/uv pip compile $(LOCK_FLAGS) --universal --python-version 3.11 --generate-hashes --no-header -q pyproject.toml -c requirements-test.txt -o requirements.txt

# Compares both requirement files with the known vulnerabilities that PyPI publishes. pip-audit runs in an environment
# of its own. With --strict, a package that PyPI does not answer for is an error.
audit: $(PACKAGE)
	$(PIP) uv
	@$(AUDIT) -r requirements.txt -r requirements-test.txt || { echo "error: a package is vulnerable, or PyPI did not answer for it; the lines above name it"; exit 1; }

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache $(OUT)

# The stamp file is written last, so a killed installation starts again from an empty folder.
$(RUNTIME): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "error: $(PYTHON) is Python %d.%d, but Python 3.11 to 3.13 is needed: set it with `make PYTHON=python3.12 ...`" % v)'
	$(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the packages of requirements.txt (one to three minutes) ..."
	$(PIP) --no-deps --require-hashes -r requirements.txt
	@touch $@

$(PACKAGE): $(RUNTIME) pyproject.toml
	$(PIP) --no-deps --editable .
	@touch $@

$(TEST): $(PACKAGE) requirements-test.txt
	$(PIP) --no-deps --require-hashes -r requirements-test.txt
	@touch $@

# PyTorch is pinned by version only. The build (CPU or CUDA) depends on the machine and its package index, so
# the lock has no hash for it. An installed build of this version is kept; PyTorch's web site shows how to
# install the small CPU build.
$(PARITY): $(TEST)
	@echo "Installing PyTorch $(TORCH) and transformers $(TRANSFORMERS) (a CPU build is enough) ..."
	$(PIP) torch==$(TORCH) transformers==$(TRANSFORMERS)
	@touch $@

# The compiler is in a separate folder, because JAX in $(VENV) would otherwise look for TPUs.
$(TPU_COMPILER): $(RUNTIME)
	@rm -rf $(VENV)/tpu
	$(PIP) --no-deps --target $(VENV)/tpu "$(LIBTPU)"
	@touch $@

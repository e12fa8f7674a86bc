# Everything that is needed is set up by whichever target is called first: `make demo` and `make test` work on a fresh clone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
# The tree that `make verify` fetches every file of.
ROOT ?= $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("stdlib"))' 2>/dev/null)

# Test processes: tests wait as often as they compute.
PROCESSES ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 3 ? n + 1 : 4)))

bin := .venv/bin
engine := objmapper_server/_engine.abi3.so
s3_server := $(bin)/s3s-fs
rust := engine/Cargo.toml engine/Cargo.lock $(shell find engine/src -name '*.rs')
rust_env := . tools/rust.sh
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOAKS := slow_writers unread_answers fairness flooder stuck_uploads path_traversal linearizability malformed_frames faults \
	failing_disk crashes malformed_datagrams lifecycle origin_crashes

.PHONY: help setup build demo demo-s3 test test-python test-rust lint check bench bench-recording models verify crashes soak reference \
	contract screenshots clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: .venv/.installed ## the virtual environment and the engine, in release mode

build: $(engine) ## the engine only

demo: setup ## serves the interpreter's standard library, fetches from it, shows the figures
	PATH="$(CURDIR)/$(bin):$$PATH" examples/demo.sh

demo-s3: setup $(s3_server) ## serves a bucket of an S3 server through the disk cache
	PATH="$(CURDIR)/$(bin):$$PATH" examples/s3.sh

test: test-python test-rust ## all tests

# A file's tests run in one process: they share servers, and look at the descriptors of their own. A test that fails
# beside others runs once more by itself: it passes where only the machine was too busy.
test-python: setup $(s3_server)
	$(bin)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile $(PYTEST_ARGS) || \
		$(bin)/python -m pytest --last-failed --last-failed-no-failures none $(PYTEST_ARGS)

# A test that hangs fails, as in Python; compiling has all the time that it needs.
test-rust: .venv/.tools
	$(rust_env); cd engine && cargo test --no-default-features --no-run && timeout 900 cargo test --no-default-features

# An S3 server for the tests of origins. Later versions need a newer Rust.
$(s3_server): .venv/.tools
	$(rust_env); CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --root .venv --target-dir engine/target/s3s-fs --debug --locked \
		--version 0.14.1 --features binary s3s-fs
	touch $@

lint: setup ## formatting, lints and types, Python and Rust
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/pyright
	$(bin)/python tools/config_arguments.py --check
	$(bin)/python tools/reference.py --check
	$(bin)/python -m mypy.stubtest objmapper_server._engine
	$(bin)/python -m mypy.stubtest --mypy-config-file pyproject.toml --allowlist tools/stubtest_allowed.txt objmapper_client
	$(rust_env); cd engine && cargo fmt --check
	$(rust_env); cd engine && cargo clippy --all-targets --locked -- -D warnings
	$(rust_env); cd engine && cargo clippy --all-targets --locked --no-default-features -- -D warnings

check: lint test ## lint, then all tests: what must pass before a change goes in

bench-recording: .venv/.tools ## what the statistics cost a request, in nanoseconds
	$(rust_env); cd engine && cargo bench --no-default-features

models: .venv/.tools ## the protocols between the engine's threads, in every order of their steps (loom)
	$(rust_env); cd engine && CARGO_TARGET_DIR=target/models RUSTFLAGS="--cfg model_check" \
		cargo test --release --lib --no-default-features loom_tests

verify: setup ## fetches every file under ROOT in every way and compares (ROOT=/usr/share; default: the standard library)
	$(bin)/python benchmarks/verify_tree.py $(ROOT)

crashes: setup ## kills a server at every system call of a write and a thousand times at random; needs strace
	tools/system.sh $(PYTHON) strace
	$(bin)/python -m benchmarks.soak.crashes

soak: setup $(s3_server) ## looks for what breaks, half an hour: slow and hostile clients, faults, races, kills; needs strace
	tools/system.sh $(PYTHON) strace
	$(rust_env); cd engine && cargo test --release --no-default-features malformed
	OBJMAPPER_STUCK_DISKS=1 $(bin)/python -m pytest tests/wire_v2/test_stuck_disk.py
	for each in $(SOAKS); do printf '\n== %s\n' "$$each"; OBJMAPPER_STUCK_DISKS=1 $(bin)/python -m benchmarks.soak.$$each; done

bench: setup ## every model at several loads; with YARDSTICKS="--load … --floor-server … --floor-epoll …" beside those
	$(if $(YARDSTICKS),$(bin)/python benchmarks/against_baseline.py $(YARDSTICKS),$(bin)/objmapper bench models)

reference: setup ## docs/reference.md and what Config takes, from docstrings and fields
	$(bin)/python tools/config_arguments.py
	$(bin)/python tools/reference.py

contract: setup ## the admin endpoint against its own OpenAPI document, with schemathesis in a throw-away environment
	tests/contract.sh $(bin)/python

screenshots: setup ## the pictures of the dashboard in docs/, from a server under load; needs chromium
	$(bin)/python benchmarks/screenshots.py

clean: ## removes what was built, the virtual environment too
	rm -rf .venv .rust build dist engine/target *.egg-info $(engine) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment with everything but this project itself.
.venv/.tools: pyproject.toml tools/system.sh
	tools/system.sh $(PYTHON)
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/python -m pip install --quiet --upgrade pip
	$(bin)/python -m pip install --quiet --group dev
	touch $@

# setuptools-rust itself calls cargo, so that the editable install below finds everything compiled; called directly, it
# leaves the terminal to cargo's progress.
$(engine): $(rust) .venv/.tools
	$(rust_env); $(bin)/python -W ignore -c 'import setuptools; setuptools.setup()' -q build_rust --inplace
	touch $@

# setuptools remarks on every editable install that it is one. Any other install compiles what it installs: so does this one,
# or commands would start slowly where bytecode is not written (PYTHONDONTWRITEBYTECODE).
.venv/.installed: pyproject.toml .venv/.tools $(engine)
	$(rust_env); PYTHONWARNINGS=ignore $(bin)/python -m pip install --quiet --no-build-isolation --editable .
	$(bin)/python -m compileall -q objmapper_client objmapper_server cli/objmapper_cli
	touch $@ $(engine)
	touch $@

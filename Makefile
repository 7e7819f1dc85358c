# Every target sets itself up first: nothing needs to be installed but Python 3.11 and make.
PYTHON ?= python3
PRESET ?= demo
VIDEOS ?=
NAME ?=
IMAGE ?=
DATA_IMAGE ?=
BENCH ?=
CHECKPOINT ?=
PORT ?=
REGISTRY ?= localhost
TAG ?= dev
BASE ?=
TRAIN_BASE ?=
IMAGES ?= data train submit

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COLOSSALAI_VENV := .venv-colossalai
COLOSSALAI_BIN := $(COLOSSALAI_VENV)/bin
COLOSSALAI_READY := $(COLOSSALAI_VENV)/.ready
FIND_LINKS ?= $(PIP_FIND_LINKS)
TORCH_BACKEND ?= $(if $(FIND_LINKS),,cpu)
LINKS := $(if $(FIND_LINKS),--find-links "$(FIND_LINKS)")

.DEFAULT_GOAL := help
.PHONY: help setup demo ui studio data data-version repro pipeline images image-list test test-colossalai lint bench charts-docs studio-picture clean

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use
demo: $(READY) ## From nothing to a trained, evaluated model (PRESET=demo VIDEOS=folder NAME=run)
	$(BIN)/kinoflow run --preset "$(PRESET)" $(if $(VIDEOS),--videos "$(VIDEOS)") $(if $(NAME),--name "$(NAME)")

ui: $(READY) ## Keep MLflow and the object store up, print their addresses
	$(BIN)/kinoflow ui

studio: $(READY) ## Draw videos, look at them and compare checkpoints on a page (CHECKPOINT=run, PORT=7860)
	$(BIN)/kinoflow studio $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(if $(PORT),--port "$(PORT)")

data: $(READY) ## Make the demo's source videos in data/
	$(BIN)/kinoflow data --preset "$(PRESET)"

data-version: data ## Write the version of data/ into data.dvc
	$(BIN)/dvc add data

repro: data ## The same stages under DVC, with tracking
	$(BIN)/kinoflow exec -- $(BIN)/dvc repro

pipeline: $(READY) ## Compile build/text_to_video.yaml for Kubeflow (PRESET=demo IMAGE=name@sha256:…)
	$(BIN)/kinoflow compile --preset "$(PRESET)" $(if $(IMAGE),--image "$(IMAGE)") \
		$(if $(DATA_IMAGE),--data-image "$(DATA_IMAGE)") --output build/text_to_video.yaml

images: ## Build the tasks' images (IMAGES="data train submit" REGISTRY=… TAG=… BASE=… TRAIN_BASE=… TORCH_BACKEND=cu130 PUSH=1)
	$(PYTHON) -m components.images $(IMAGES) --registry "$(REGISTRY)" --tag "$(TAG)" --base "$(BASE)" \
		--train-base "$(TRAIN_BASE)" --torch-backend "$(TORCH_BACKEND)" --packages "$(PACKAGES)" $(LINKS) \
		$(if $(BUILDER),--builder "$(BUILDER)") --flags "$(BUILD_FLAGS)" $(if $(PUSH),--push)

image-list: pipeline ## Print every image a cluster must reach (VALUES="platform=mine.yaml …" TO=registry.local/video)
	$(BIN)/kinoflow images --pipeline build/text_to_video.yaml $(addprefix --values ,$(VALUES)) $(if $(TO),--to "$(TO)")

##@ Work on it
test: $(READY) ## Run the tests (the slow ones too: make test SLOW=1)
	$(BIN)/python -m pytest $(if $(SLOW),,-m "not slow")

test-colossalai: $(COLOSSALAI_READY) ## Run the tests of ColossalAI's strategy in an environment of their own
	$(COLOSSALAI_BIN)/python -m pytest --confcutdir tests/colossalai tests/colossalai

lint: $(READY) ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(READY) ## Measure speed (BENCH="network buckets")
	$(BIN)/python -m tests.benchmarks $(BENCH)

charts-docs: $(READY) ## Write the charts' READMEs from their values.yaml
	$(BIN)/python charts/document.py

studio-picture: $(READY) ## Take docs/studio.png anew with Chromium, from the run CHECKPOINT (the demo's when absent)
	$(BIN)/python -m tests.components.studio.screenshot $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

##@ House
setup: $(READY) ## Install everything into .venv

clean: ## Remove caches and build products; data, runs and .kinoflow stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find model components pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "error: Python 3.11 or 3.12 is needed; name one with PYTHON=python3.11." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv || echo "uv cannot be installed; pip does the work and takes longer."
	{ $(BIN)/uv pip install --python $(BIN)/python $(LINKS) -r requirements.lock && \
	  $(BIN)/uv pip install --python $(BIN)/python --no-deps -e .; } || \
	{ $(BIN)/python -m pip install $(LINKS) -r requirements.lock && \
	  $(BIN)/python -m pip install --no-deps -e .; }
	touch $@

# The lock names a newer torch than ColossalAI asks for, so nothing may be resolved again.
$(COLOSSALAI_READY): requirements-colossalai.lock pyproject.toml
	$(PYTHON) -m venv $(COLOSSALAI_VENV)
	$(COLOSSALAI_BIN)/python -m pip install --quiet uv || echo "uv cannot be installed; pip does the work."
	{ $(COLOSSALAI_BIN)/uv pip install --python $(COLOSSALAI_BIN)/python $(LINKS) --no-deps \
	  -r requirements-colossalai.lock -e .; } || \
	$(COLOSSALAI_BIN)/python -m pip install $(LINKS) --no-deps -r requirements-colossalai.lock -e .
	touch $@

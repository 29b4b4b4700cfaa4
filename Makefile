# The ways into this project. Each sets up what it needs first (see scripts/setup.sh).
SHELL := /bin/bash
PYTHON_BIN := .venv/bin/python
# Starts are measured, so they must find their bytecode as an installed program does.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-demo setup-test setup-bench demo test test-browser lint types imports bench bench-quick kill fuzz clients lock clean

help: ## list what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: setup-test ## install everything: system packages, and .venv from the lock

setup-demo:
	@scripts/setup.sh demo

setup-test:
	@scripts/setup.sh test

setup-bench:
	@scripts/setup.sh bench

demo: setup-demo ## convert a real image and start a container that has not been downloaded
	@$(PYTHON_BIN) -m benchmarks.demo

test: lint types imports ## all checks and tests (ARGS="tests/formats -k toc" for some of the tests)
	@scripts/run-tests.sh $(PYTHON_BIN) -m pytest $(ARGS)

test-browser: ## look at reports of measurements in a real browser (installs chromium, 300 MB)
	@scripts/setup.sh browser
	@scripts/run-tests.sh $(PYTHON_BIN) -m pytest tests/bench/test_page.py

lint: setup-test ## ruff: style and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: setup-test ## mypy, strict
	.venv/bin/mypy

imports: setup-test ## import-linter: which part may know which
	.venv/bin/lint-imports

bench: setup-bench ## measure against what people use now, 25 minutes (ARGS=--resume goes on with one that was ended)
	@$(PYTHON_BIN) -m benchmarks $(ARGS)

bench-quick: setup-bench ## three images, started by lazyfs and by containerd's overlayfs, in three minutes
	@$(PYTHON_BIN) -m benchmarks.suite --quick

kill: setup-test ## kill the daemon 1,000 times under readers that check every byte (ARGS="--mount-mode tree", or "--how stop")
	@$(PYTHON_BIN) -m benchmarks.kill_daemon --kills 1000 $(ARGS)

fuzz: setup-test ## feed each parser a million inputs that are nearly right, over all runs (hours; ARGS="--seconds 3600 --only tar")
	@nice -n 19 $(PYTHON_BIN) -m tests.fuzz $(ARGS)

clients: ## build nerdctl and BuildKit, with which the tests of the snapshotter start images then (needs Go)
	@scripts/clients.sh

lock: setup-test ## pin every dependency again, newest first
	@scripts/lock.sh

clean: ## remove everything that was made here, mounts and programs included
	@scripts/clean.sh

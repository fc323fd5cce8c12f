# Two commands do all set-up: `make demo` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-slow check format bench clean

$(INSTALLED): setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[cpu,emoji,timm,milvus,serve,export,test,compare]'
	touch $@

# Three generations on characters rendered from fonts that are already installed: nothing is downloaded.
demo: $(INSTALLED)
	$(BIN)/ke-metric train recipes/glyphs_resnet18.yaml --lineage lineages/demo --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest

# What takes minutes: every architecture, every rate, twenty kills.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Seconds and megabytes of splitting, search and scoring on this machine.
bench: $(INSTALLED)
	$(BIN)/python eval/speed.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

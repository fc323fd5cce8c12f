# Two commands do all set-up: `make demo` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

EXTRAS := cpu,emoji,timm,milvus,parquet,postgres,serve,export,report,docs,test,compare

.PHONY: demo browser test test-slow test-lowest check format docs bench clean

$(INSTALLED): setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

# Three generations on characters rendered from fonts that are already installed: nothing is downloaded.
demo: $(INSTALLED)
	$(BIN)/ke-metric train recipes/glyphs_resnet18.yaml --lineage lineages/demo --overwrite

# Chromium, which the tests of pages look at them with; where it is missing and cannot be installed they are skipped.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null 2>&1 || { test "$$(id -u)" = 0 && \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
		echo "no Chromium: install it (Debian: apt-get install chromium) to have the pages tested as well"

# A process for every core, each with one thread: the tests' networks are too small for more. Compiled modules are
# kept whatever the environment says: every process that a test starts would compile them again.
test: $(INSTALLED) browser
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# What takes minutes: every architecture, every rate, twenty kills.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# The tests with the lowest version of every library that setup.py allows, in an environment of their own (.lowest).
# Linters and type checkers speak about the newest versions and are left out.
test-lowest:
	test -x .lowest/bin/python || $(PYTHON) -m venv .lowest
	.lowest/bin/python tests/lowest_versions.py > .lowest/constraints.txt
	.lowest/bin/pip install --quiet --constraint .lowest/constraints.txt --editable '.[$(EXTRAS)]'
	OMP_NUM_THREADS=1 .lowest/bin/python -m pytest -n auto --dist loadfile --deselect tests/house_rules/test_tools.py

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages that the code says, and docs/_build/html/index.html; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/python docs/generate_fields.py
	$(BIN)/python docs/generate_commands.py
	$(BIN)/python docs/generate_losses.py
	$(BIN)/python -m sphinx -q -W --keep-going -n docs docs/_build/html
	@echo docs/_build/html/index.html

# The speed scripts in their short settings, in ten minutes: splitting, training, loader, scores, processes.
bench: $(INSTALLED)
	$(BIN)/python -m eval.speed.run

clean:
	rm -rf .venv .lowest build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

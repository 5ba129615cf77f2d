# Each target works in a fresh clone: it makes .venv, installs mgdet into it, and runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs dist clean

demo: $(INSTALLED)
	$(BIN)/mgdet demo

# A file's tests stay in one process, as they share what they have trained.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/ruff format --check
	$(BIN)/ruff check --no-cache
	$(BIN)/mypy

# The documentation's site, built without a network; a dead link or a page that the menu lacks is an error.
docs: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the site is site/index.html"

# What goes to a package index, checked: dist/*.tar.gz and the wheel built from it.
dist: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[dev]'
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	# LibreYOLO brings OpenCV with windows, which needs libGL, into the same folder: the one without them comes last.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps opencv-python-headless
	touch $@

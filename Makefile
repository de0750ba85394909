# Each target works alone on a machine with python3, pip and make: it makes .venv, installs what it needs (not again when
# pyproject.toml has not changed), and runs. To use an environment of your own: make test VENV=/path/to/it
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow coverage fuzz lint map docs bench clean

demo: $(VENV)/.installed
	$(BIN)/python -m qa_hooks demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

# Lines and branches of the package, in the terminal and in coverage.xml. There is no threshold: it shows what nobody runs.
coverage: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered --cov-report=xml $(ARGS)

fuzz: $(VENV)/.test
	QA_HOOKS_FUZZ=long $(BIN)/python -m pytest tests/fuzz --timeout 14400 $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p qa_hooks

map:
	$(PYTHON) tests/map_imports.py

# The documentation as a site in build/site; nothing in it comes from another host, and index.html opens from the folder.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(NAME) $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip "setuptools>=77" wheel

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) torch torchvision
	$(PIP) -e ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) -e ".[test]"
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) -e ".[docs]"
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PIP) -e ".[bench,test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info

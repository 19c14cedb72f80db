# Every target makes .venv when it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-all test-browser check format

setup: .venv/ready

.venv/ready: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/e3d demo -o demo-output

test: setup
	$(BIN)/pytest -n 2 -m 'not slow'

test-all: setup
	$(BIN)/pytest -n 2

# apt-get install -y --no-install-recommends chromium chromium-driver
test-browser: setup
	$(BIN)/pytest -m browser tests/browser

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -n 2 -m 'not slow'

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Every target makes .venv when it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo docs test test-all test-browser check format

setup: .venv/ready

.venv/ready: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e '.[dev]'
	touch $@ .venv/demo-ready

# The demo alone needs neither TensorFlow nor the tools of developers; `dev` contains its libraries.
.venv/demo-ready: pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c requirements/constraints.txt -e '.[demo]'
	touch $@

# The server that tests/triton and tests/fleet start. Where it cannot run, they are skipped with the reason.
.triton/ready: deploy/triton/requirements.txt | .venv/ready
	$(BIN)/python deploy/triton/serve --install || test $$? -eq 4

demo: .venv/demo-ready
	$(BIN)/e3d demo -o demo-output

# The variable silences Material's advertisement, which is not a warning of these docs.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html, or with the search: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

test: setup .triton/ready
	$(BIN)/pytest -n 2 -m 'not slow'

test-all: setup .triton/ready
	$(BIN)/pytest -n 2

# apt-get install -y --no-install-recommends chromium chromium-driver
test-browser: setup
	$(BIN)/pytest -m browser tests/browser

check: setup .triton/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -n 2 -m 'not slow'

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

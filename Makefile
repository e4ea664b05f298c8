# The two commands of the README: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
RUN ?= runs/demo
TASK ?= ranking
GALLERY ?= 0
# Processes that share the tests; neighbours, which share fixtures, stay together.
WORKERS ?= auto
STUDY := --storage sqlite:///$(RUN)/study.db --study-name flights-$(TASK)

.PHONY: demo test lint types docs unit coverage servers chromium test-oldest screenshots dist release-check format clean

$(BIN)/.installed: pyproject.toml constraints.txt setup.py optuna_nis/nn/_kernels.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt \
		--editable ".[dev,docs,foreign]"
# Without what it asks for: builds for CUDA, and a torchmetrics of its own.
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-deps \
		torchrec fbgemm-gpu-cpu || \
		{ echo "Not installed: torchrec. Its tests are skipped."; [ "$${CI:-}" != true ]; }
# By all processors, where pip would take one, and what is imported. Some packages hold templates
# that are no Python.
	$(BIN)/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/' $(VENV)/lib || true
	touch $@

demo: $(BIN)/.installed
	rm -rf $(RUN) && mkdir -p $(RUN)
	$(BIN)/optuna-nis search --dataset flights --task $(TASK) --budget 25% --seed 0 $(STUDY)
	$(BIN)/optuna-nis retrain $(STUDY) --output $(RUN)/model
	$(BIN)/optuna-nis report $(STUDY) --output $(RUN)/report.html --json

# What keeps one processor busy goes side by side: types take longer than lint and docs, and go on
# beside the tests.
test: $(BIN)/.installed
	$(MAKE) --jobs=2 types lint-docs-unit

.PHONY: lint-docs-unit
lint-docs-unit: lint docs
	$(MAKE) unit

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The last numpy for Python 3.10 has stubs that are stricter about shapes than later ones.
types: $(BIN)/.installed
	if $(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11))"; then $(BIN)/mypy; \
		else echo "Not checked with Python 3.10: types."; fi

# With GALLERY=1 the tutorials are run and their output shown, which takes minutes.
docs: $(BIN)/.installed
	rm -rf docs/tutorials
	$(BIN)/sphinx-build -W --keep-going -q -b html -D sphinx_gallery_conf.plot_gallery=$(GALLERY) docs docs/_build/html

# Each worker keeps a processor busy: threads of torch and numpy would only wait for each other.
unit coverage test-oldest: export OMP_NUM_THREADS ?= 1

unit: $(BIN)/.installed servers chromium
	$(BIN)/pytest --numprocesses=$(WORKERS) --dist=worksteal

# Apart from the tests, which tracing makes much longer.
coverage: $(BIN)/.installed servers chromium
	$(BIN)/pytest --numprocesses=$(WORKERS) --dist=worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90

# With the oldest versions that pyproject.toml allows, in an environment of its own.
$(OLDEST)/bin/.installed: pyproject.toml constraints-oldest.txt setup.py optuna_nis/nn/_kernels.c
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[dev]"
	touch $@

test-oldest: $(OLDEST)/bin/.installed servers chromium
	$(OLDEST)/bin/pytest --numprocesses=$(WORKERS) --dist=worksteal tests

servers:
	sh tests/support/install_servers.sh

chromium:
	sh tests/support/install_chromium.sh

# Of the study that `make demo` leaves.
screenshots: $(BIN)/.installed chromium
	$(BIN)/python docs/screenshots.py $(STUDY)

dist: $(BIN)/.installed
	rm -rf build dist *.egg-info
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/python release/check_dist.py

release-check: dist
	$(BIN)/python release/check_install.py

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) runs build dist *.egg-info docs/_build docs/generated docs/tutorials

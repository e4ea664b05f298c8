# The two commands of the README: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
TASK ?= ranking
STUDY := --storage sqlite:///$(RUN)/study.db --study-name flights-$(TASK)

.PHONY: demo test lint types unit servers chromium screenshots format clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,foreign]"
# Without what it asks for: builds for CUDA, and a torchmetrics of its own.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps \
		torchrec fbgemm-gpu-cpu || \
		{ echo "Not installed: torchrec. Its tests are skipped."; [ "$${CI:-}" != true ]; }
	touch $@

demo: $(BIN)/.installed
	rm -rf $(RUN) && mkdir -p $(RUN)
	$(BIN)/optuna-nis search --dataset flights --task $(TASK) --budget 25% --seed 0 $(STUDY)
	$(BIN)/optuna-nis retrain $(STUDY) --output $(RUN)/model
	$(BIN)/optuna-nis report $(STUDY) --output $(RUN)/report.html --json

test: lint types unit

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed
	$(BIN)/mypy

unit: $(BIN)/.installed servers chromium
	$(BIN)/pytest --cov --cov-report=term:skip-covered --cov-fail-under=90

servers:
	sh benchmarks/install_servers.sh

chromium:
	sh benchmarks/install_chromium.sh

# Of the study that `make demo` leaves.
screenshots: $(BIN)/.installed chromium
	$(BIN)/python docs/screenshots.py $(STUDY)

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build dist *.egg-info

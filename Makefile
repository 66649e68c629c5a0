# Every target works from a fresh clone: the virtual environment is made on first use.
# `make run VENV=/some/folder OSR_OUTPUT=/another` works in a clone that is read-only, too.
PYTHON ?= $(shell command -v python3 || command -v python || echo python3)
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: help run demo notebooks retrain restore test check report data bench lint
.DEFAULT_GOAL := help

help:
	@echo "make run        every notebook on real images with the shipped weights, into .run/"
	@echo "                (no download, no training; nothing that is stored changes)"
	@echo "make demo       every notebook small, every model trained in seconds, into .demo/"
	@echo "make test       check, then every notebook: small, and against what is stored"
	@echo "make check      its fast part: lint, and every test that runs no notebook"
	@echo "make data       fetch the other data sets, about 1 GB; run it again to go on"
	@echo "make restore    bring the stored figures, results and reports back"
	@echo "make lint       ruff"
	@echo "make bench      how fast, against the plain way"
	@echo
	@echo "For maintainers:"
	@echo "make notebooks  as run, then replace the stored outputs, figures, results and reports"
	@echo "make retrain    train every model from scratch (SEEDS=0,1,2,3,4 for five seeds)"
	@echo "make report     report.pdf, system_c.pdf and the tables of RESULTS.md, from the results"
	@echo
	@echo "OSR_DATA=folder: where more data sets lie. OSR_OUTPUT=folder: instead of .run/ or .demo/"
	@echo "PYTHON=python3.12: which Python. VENV=folder: where the environment is made"

# uv takes a fifth of pip's time; where it finds no index that pip is told of, pip serves.
$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --quiet uv
	$(VENV)/bin/uv pip install --python $(PY) -r requirements.txt \
		|| $(PY) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

run demo notebooks retrain restore: $(VENV)/installed
	$(PY) tests/run_notebooks.py $@

test: check
	$(PY) -m pytest tests -m runs

check: lint
	$(PY) -m pytest tests -m "not runs" -n auto --dist loadfile

report: $(VENV)/installed
	$(PY) report/build.py

data: $(VENV)/installed
	$(PY) -m osr.datasets

bench: $(VENV)/installed
	$(PY) tests/bench.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

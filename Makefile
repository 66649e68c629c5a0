# Every target works from a fresh clone: the virtual environment is made on first use.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo run notebooks retrain test check report data bench lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       everything, small, in minutes: no data, no download, results in .demo/"
	@echo "make run        the real thing: real data, shipped weights, no training"
	@echo "make test       the whole test suite: every notebook is executed, small and, where the data are, in full"
	@echo "make check      its fast part, and lint: no notebook is executed"
	@echo "make notebooks  as run, and rewrite the outputs stored in notebooks/"
	@echo "make retrain    every model from scratch (SEEDS=0,1,2,3,4 for all seeds)"
	@echo "make report     compile report/report.pdf and the README's tables from the results"
	@echo "make data       download all data sets, the optional ones too"
	@echo "make bench      how fast, against the plain way"
	@echo "make lint       ruff"

# uv takes a fifth of pip's time; where it finds no index that pip is told of, pip serves.
$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --quiet uv
	$(VENV)/bin/uv pip install --python $(PY) -r requirements.txt \
		|| $(PY) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

demo run notebooks retrain: $(VENV)/installed
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

clean:
	rm -rf .demo .run .retrain osr_mnist.egg-info

# The only definitions of these commands; CI calls the same ones.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
STAMP = $(VENV)/.installed

.PHONY: demo test test-slow test-oldest check format bench conformance clean

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,check]"
	touch $(STAMP)

demo: $(STAMP)  ## convert the shipped sample, open it with AutoModel, fill blanks
	$(PYTHON) examples/demo.py

test: $(STAMP)  ## every test that runs on two cores
	$(PYTHON) -m pytest -m "not slow and not gpu"

test-slow: $(STAMP)
	$(PYTHON) -m pytest -m "slow and not gpu"

check: $(STAMP)  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest .conformance demo-output build *.egg-info .pytest_cache .ruff_cache .mypy_cache

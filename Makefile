# Commands for a fresh machine with git, make and Python >= 3.11: `make demo`, then `make chat`; and `make test`.
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

.DEFAULT_GOAL := help
.PHONY: help demo chat browser test test-all test-cluster test-lmms neighbours docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## the whole graph on the configuration CONFIG (config.yaml), and what came out
	@$(BIN)/python -m scripts.workflow.unlock
	@PYTHONPATH="$(CURDIR)" $(BIN)/snakemake --cores $(CORES) --configfile $(CONFIG) --logger visualchat
	@$(BIN)/python -m scripts.summary --config $(CONFIG) --root "$$($(BIN)/python -m scripts.settings --results $(CONFIG))"

# Chat in the browser with the model of CONFIG that was exported last. SERVE: further options of `python -m scripts.serve`.
chat: $(READY)  ## chat in the browser with the model of CONFIG
	@$(BIN)/python -m scripts.serve $(SERVE) --root "$$($(BIN)/python -m scripts.settings --results $(CONFIG))"

# A Chromium for the tests of the page, where the system brings none.
browser: $(READY)  ## a Chromium for the tests of the page
	$(BIN)/python -m playwright install --with-deps chromium-headless-shell

test: $(READY)  ## the tests, without those that take minutes
	$(BIN)/python -m pytest -m "not long"

test-all: $(READY) neighbours test-lmms  ## every test, those of other tools that read our shards too
	$(BIN)/python -m pytest

# A real Slurm of two nodes on this machine (Debian's packages; needs root): training on both, interrupted in every way.
test-cluster: $(READY)  ## the tests on a Slurm of two nodes that is started for them (needs root)
	@[ "$$(id -u)" = 0 ] || { echo "test-cluster starts a Slurm of its own, which takes root: run it as root"; exit 1; }
	@PATH="$$PATH:/usr/sbin"; { command -v slurmctld && command -v munged; } > /dev/null || \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pip install --quiet -r envs/requirements-cluster.txt
	$(BIN)/python -m pytest tests/cluster tests/workflow/test_recipes.py

# Other tools that read our shards, each in an environment of its own: what they need does not fit together.
neighbours: .neighbours/datasets/.ready .neighbours/energon/.ready  ## environments of other tools that read our shards

.neighbours/%/.ready: envs/neighbours/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -r $<
	@touch $@

# lmms-eval asks a VisualChat model through our entry point. Its environment sees ours, and adds what the harness imports.
test-lmms: .neighbours/lmms/.ready  ## the test inside lmms-eval, in an environment of its own
	.neighbours/lmms/bin/python -m pytest tests/scripts/evaluation/test_lmms.py

.neighbours/lmms/.ready: envs/neighbours/lmms.txt pyproject.toml $(READY)
	$(BIN)/python -m venv $(@D)
	echo "$(CURDIR)/$$(echo $(VENV)/lib/python*/site-packages)" > "$$(echo $(@D)/lib/python*/site-packages)/visualchat-environment.pth"
	$(@D)/bin/pip install --quiet --no-deps -r $<
	$(@D)/bin/pip install --quiet --no-deps -e .
	@touch $@

docs: $(READY)  ## the generated pages and the picture of the graph
	$(BIN)/python -m scripts.settings --write
	$(BIN)/python -m scripts.workflow.rules_reference --write
	$(BIN)/python -c 'from pygraphviz import AGraph; AGraph("docs/graph.dot").draw("docs/graph.svg", prog="dot")'

clean:  ## remove the environments
	rm -rf $(VENV) .neighbours

$(READY): envs/requirements.txt envs/requirements-torch.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Name another with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r envs/requirements-torch.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-build-isolation -r envs/requirements.txt
	@touch $@

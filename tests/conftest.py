"""What all tests share: random draws that can be repeated, and a division of the tests among processes."""

import glob
import os
import random
from typing import Any

import pytest
from hypothesis import settings

# The models are too small for a second thread, which would keep a core from the other process of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU the kernels of model/fused_kernels.py run in Triton's interpreter. It reads this when it is imported.
if not glob.glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _planned_nowhere(monkeypatch):
    """A workflow that a test builds in this process must not decide for the next test."""
    monkeypatch.delenv("VISUALCHAT_PLANNED_ON", raising=False)


# With pytest-xdist, tests that share what takes long to make run in one process: the finished graph, the training setup
# and its undisturbed run, the trained model. These groups come first, so that single files fill the time up at the end.
_GROUPS = (
    ("tests/workflow/",),
    ("tests/scripts/training/", "tests/scripts/test_train", "tests/scripts/test_export", "tests/scripts/estimation/"),
    ("tests/scripts/serving/", "tests/scripts/test_evaluate", "tests/scripts/test_serve", "tests/scripts/test_chat"),
)

# What starts ranks, a graph, a server or a browser, builds several models, or interprets kernels: marked `integration`,
# no part of `units`.
_INTEGRATION = (
    "tests/benchmarks/test_gpu_check",
    "tests/benchmarks/test_train",
    "tests/cluster/",
    "tests/faults/",
    "tests/workflow/test_commands",
    "tests/workflow/test_first_hour",
    "tests/workflow/test_graph",
    "tests/workflow/test_healing",
    "tests/workflow/test_kubernetes",
    "tests/workflow/test_mixed_blend",
    "tests/workflow/test_output",
    "tests/workflow/test_provenance",
    "tests/workflow/test_recipes",
    "tests/workflow/test_reruns",
    "tests/workflow/test_samples",
    "tests/workflow/test_subset",
    "tests/model/test_fused_attention",
    "tests/model/test_kernel_compilation",
    "tests/model/test_remote_code",
    "tests/model/test_transformers_api",
    "tests/scripts/estimation/",
    "tests/scripts/serving/test_engine",
    "tests/scripts/serving/test_http",
    "tests/scripts/serving/test_load",
    "tests/scripts/serving/test_page",
    "tests/scripts/serving/test_siege",
    "tests/scripts/training/",
    "tests/scripts/test_chat",
    "tests/scripts/test_encode_images",
    "tests/scripts/test_evaluate",
    "tests/scripts/test_export",
    "tests/scripts/test_extract_qwen_encoder",
    "tests/scripts/test_make_model",
    "tests/scripts/test_neighbours",
    "tests/scripts/test_pretrain",
    "tests/scripts/test_report",
    "tests/scripts/test_serve",
    "tests/scripts/test_train",
    "tests/test_preload",
    "tests/torture/",
)

# The same examples each time, so that a failure is due to the change that is tested. To look for further ones:
# `pytest --hypothesis-profile search`, which prints how to repeat what it finds.
settings.register_profile("repeat", derandomize=True)
settings.register_profile("search", derandomize=False, max_examples=1000, print_blob=True)
settings.load_profile("repeat")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="seed of the tests that draw numbers; another one each time if not given")


def _group_of(nodeid: str) -> int:
    """The place in `_GROUPS` of the group that a test belongs to; the length of `_GROUPS` if it belongs to none."""
    return next((number for number, starts in enumerate(_GROUPS) if nodeid.startswith(starts)), len(_GROUPS))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(_INTEGRATION):
            item.add_marker(pytest.mark.integration)
    if config.pluginmanager.hasplugin("xdist"):
        items.sort(key=lambda item: _group_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups and whole files. The mark `xdist_group` has no effect with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            group = _group_of(nodeid)
            return f"group {group}" if group < len(_GROUPS) else nodeid.partition("::")[0]

    # In our order, not by number of tests.
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


@pytest.fixture
def chooser(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers whose seed is shown if the test fails."""
    seed = request.config.getoption("--seed")
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    print(f"random numbers from the seed {seed}; draw them again with --seed {seed}")
    return random.Random(seed)

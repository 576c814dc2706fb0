"""What all tests share: random draws that can be repeated."""

import random

import pytest
from hypothesis import settings

# The same examples each time, so that a failure is due to the change that is tested. To look for further ones:
# `pytest --hypothesis-profile search`, which prints how to repeat what it finds.
settings.register_profile("repeat", derandomize=True)
settings.register_profile("search", derandomize=False, max_examples=1000, print_blob=True)
settings.load_profile("repeat")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="seed of the tests that draw numbers; another one each time if not given")


@pytest.fixture
def chooser(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers whose seed is shown if the test fails."""
    seed = request.config.getoption("--seed")
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    print(f"random numbers from the seed {seed}; draw them again with --seed {seed}")
    return random.Random(seed)

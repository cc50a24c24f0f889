"""What every test gets: an LM cache of its own run, so that no answer of an earlier run is met.

And no network: litellm, when it is first imported, would download its price list. torch compiles in
the process that asks: the pool that it starts otherwise imports torch anew.
"""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import dspy
import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs a GPU or the hub runs only where ``-m`` names its mark; notebooks run first.

    They take minutes: last, they would keep one worker busy while the others wait.
    """
    items.sort(key=lambda item: item.path.name != "test_examples.py")
    for mark in ("gpu", "hub"):
        if mark not in config.getoption("-m").replace(f"not {mark}", "").split():
            skip = pytest.mark.skip(reason=f"needs a {mark}: pytest -m {mark}")
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def own_lm_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    dspy.configure_cache(disk_cache_dir=str(tmp_path_factory.mktemp("lm-cache")))

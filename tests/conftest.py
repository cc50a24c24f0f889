"""What every test gets: an LM cache of its own run, so that no answer of an earlier run is met."""

import dspy
import pytest


@pytest.fixture(autouse=True, scope="session")
def own_lm_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    dspy.configure_cache(disk_cache_dir=str(tmp_path_factory.mktemp("lm-cache")))

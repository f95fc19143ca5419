"""Where and when the runs of results are said to have been made."""

from __future__ import annotations

import pytest

from benchmarks.setting import Setting, setting_of
from tests.planner.problems import small_t4


@pytest.fixture(scope="session")
def setting() -> Setting:
    """Of this machine, found once: it takes processes of its own."""
    return setting_of(small_t4(), "run")

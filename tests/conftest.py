"""What every test may rely on."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# Before torch is imported, here and in processes of tests: where others want the cores too, a thread that spins
# takes the core from the thread it waits for, and both take many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it: tables are as wide as in a file

settings.register_profile(
    "the same on every machine", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("the same on every machine")


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C and hands that on; the processes that tests interrupt must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Compiling: whether this process has compiled a kernel, or found all that it called compiled by an earlier run."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

_found = {"compiled": False}


def watch_compiler() -> None:
    """Note what Triton compiles from now on; one from before 3.4 does not say, so it may have."""
    try:
        knobs = import_module("triton.knobs")
    except ImportError:
        _found["compiled"] = find_spec("triton") is not None
    else:
        knobs.compilation.listener = _note


def has_compiled() -> bool:
    """Whether a kernel was compiled since, or may have been."""
    return _found["compiled"]


def _note(*, cache_hit: bool, **_: object) -> None:
    """As Triton calls its listener, for each kernel when it is first called in a process."""
    _found["compiled"] |= not cache_hit

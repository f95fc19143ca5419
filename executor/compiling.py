"""Compiling: whether this process has compiled a kernel, or found all that it called compiled by an earlier run."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec

_found = {"missing": 0}


def watch_compiler() -> None:
    """Count what Triton compiles from now on."""
    with suppress(ImportError):
        import_module("triton.knobs").compilation.listener = _note


def has_compiled() -> bool:
    """Whether a kernel was compiled since; True where an older Triton, before 3.4, does not say."""
    if _found["missing"] or find_spec("triton") is None:
        return _found["missing"] > 0
    return find_spec("triton.knobs") is None


def _note(*, cache_hit: bool, **_: object) -> None:
    """As Triton calls its listener, for each kernel when it is first called in a process."""
    _found["missing"] += not cache_hit

"""Whether a run compiled kernels: as Triton says, and where there is none, or an older one."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from executor import compiling
from executor.compiling import has_compiled, watch_compiler
from executor.measure import Measurements
from executor.report import JobTotals, make_report
from planner.ledger import COMPILING, LOADING, Entry, Ledger
from tests.executor.tiny import make_plan, random_model, spec_of


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_found", {"compiled": False})
    for name in ("triton", "triton.knobs"):
        monkeypatch.setitem(sys.modules, name, None)


def install(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """An empty module that is found under this name."""
    module = ModuleType(name)
    module.__spec__, module.__path__ = ModuleSpec(name, None), []
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_without_triton_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And watching is no error."""
    monkeypatch.setattr(compiling, "find_spec", lambda _: None)
    watch_compiler()
    assert not has_compiled()


def test_an_older_triton_may_have_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not say; so the ledger keeps its room."""
    install(monkeypatch, "triton")
    del sys.modules["triton.knobs"]
    watch_compiler()
    assert has_compiled()


def test_triton_says_what_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its cache had was not compiled."""
    install(monkeypatch, "triton")
    knobs = install(monkeypatch, "triton.knobs")
    compilation = SimpleNamespace(listener=None)
    monkeypatch.setattr(knobs, "compilation", compilation, raising=False)
    watch_compiler()
    compilation.listener(src=None, metadata={}, metadata_group={}, times=None, cache_hit=True)
    assert not has_compiled()
    compilation.listener(src=None, metadata={}, metadata_group={}, times=None, cache_hit=False)
    assert has_compiled()


@pytest.mark.parametrize(
    ("compiled", "absent", "held"), [(True, (), 12), (False, (), 10), (False, (LOADING,), 9)]
)
def test_the_report_leaves_out_what_a_run_did_without(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, absent: tuple[str, ...], held: int
) -> None:
    """Memory to compile in where all was compiled, and to read a checkpoint in where weights were made up."""
    monkeypatch.setattr(compiling, "_found", {"compiled": compiled})
    entries = (
        Entry(tier="cpu", purpose="process", prefill_bytes=9, decode_bytes=9, loading_bytes=9),
        Entry(tier="cpu", purpose=LOADING, prefill_bytes=0, decode_bytes=0, loading_bytes=1),
        Entry(tier="cpu", purpose=COMPILING, prefill_bytes=3, decode_bytes=0),
    )
    plan = replace(make_plan(spec_of(random_model("opt"))), ledger=Ledger(entries=entries))
    found = make_report(plan, Measurements(), JobTotals(absent=absent), torch.device("cpu"), disk_bytes=0)
    assert next(row.ledger_bytes for row in found.memory if row.tier == "cpu") == held

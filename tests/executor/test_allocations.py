"""What an engine allocates is what the ledger says, entry by entry, for small models and policies of any kind."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from executor.arena import Arena
from executor.engine import Engine, EngineOptions
from planner.layout import align
from planner.model import ModelSpec, spec_from_config
from planner.plan import Plan
from planner.workload import Workload
from tests.executor.tiny import FAMILIES, make_plan

CPU = torch.device("cpu")


@cache
def spec_of(family: str, dtype: str) -> ModelSpec:
    """The planner's view of a family's tiny model."""
    config = AutoConfig.for_model(family, **FAMILIES[family])
    return spec_from_config(family, config.to_dict(), dtype)


@st.composite
def rows(draw: st.DrawFn, total: int, num_groups: int, allowed: tuple[int, ...]) -> tuple[int, ...]:
    """A gpu batch's rows over the groups that are allowed."""
    counts = [0] * num_groups
    for _ in range(total):
        counts[draw(st.sampled_from(allowed))] += 1
    return tuple(counts)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A placement of whole tensors and rows as no search would find it, with or without an emulated GPU."""
    spec = spec_of(draw(st.sampled_from(sorted(FAMILIES))), draw(st.sampled_from(("float32", "bfloat16"))))
    has_gpu, size = draw(st.booleans()), draw(st.integers(1, 7))
    attended = (2, 4) if has_gpu and spec.cpu_attention else ()
    groups = ((0,) if has_gpu else ()) + (1, 3) + attended
    return make_plan(
        spec,
        weights="".join(draw(st.lists(st.sampled_from("gcd" if has_gpu else "cd"), min_size=1, max_size=9))),
        cache=draw(rows(size, 5, groups)),
        activations=draw(rows(size, 3, (0, 1, 2) if has_gpu else (1, 2))),
        num_gpu_batches=draw(st.integers(1, 3)),
        compute_tier="gpu" if has_gpu else "cpu",
        emulated=has_gpu,
        workload=Workload(prompt_len=draw(st.integers(1, 20)), gen_len=draw(st.integers(1, 9))),
        weight_bits=draw(st.sampled_from((4, 16))),
        kv_bits=draw(st.sampled_from((4, 16))),
        weight_slots=draw(st.integers(2, 4)),
        cache_slots=draw(st.integers(2, 4)),
        prefill_rows=draw(st.integers(1, 7)),
    )


@contextmanager
def arenas() -> Iterator[list[int]]:
    """The sizes of all arenas that are made meanwhile."""
    sizes: list[int] = []
    make = Arena.__init__

    def counted(self: Arena, nbytes: int, device: torch.device, *, register: bool) -> None:
        make(self, nbytes, device, register=register)
        sizes.append(self.tensor.numel())

    with patch.object(Arena, "__init__", counted):
        yield sizes


@settings(max_examples=40)
@given(plan=plans())
def test_an_engine_allocates_its_ledger(plan: Plan) -> None:
    """Each arena is an entry on the gpu or the cpu tier, each file one on disk in whole pages; nothing is left out."""
    entries = [entry for entry in plan.ledger.entries if entry.arena]
    in_memory = Counter(entry.peak_bytes for entry in entries if entry.tier != "disk")
    on_disk = {entry.purpose: align(entry.peak_bytes) for entry in entries if entry.tier == "disk"}
    with tempfile.TemporaryDirectory() as directory, arenas() as sizes:
        engine = Engine(plan, EngineOptions(device=CPU, offload_dir=Path(directory)))
        try:
            files = {path.name: path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()}
        finally:
            engine.close()
    assert Counter(filter(None, sizes)) == in_memory
    assert {name: size for name, size in files.items() if size} == on_disk

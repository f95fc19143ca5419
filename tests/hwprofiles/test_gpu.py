"""A whole measurement of a CUDA device under a tiny budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwprofiles import host
from hwprofiles.budget import DTYPES, Budget
from hwprofiles.measure import Request, measure
from hwprofiles.probes.buffers import pinned_bytes
from hwprofiles.profile import load_profile
from hwprofiles.units import GIB, MIB

pytestmark = pytest.mark.gpu


def test_a_gpu_is_measured(tiny_budget: Budget, tmp_path: Path) -> None:
    """Every figure of every GPU is there, the cap binds, the file reads back, this host is recognised."""
    request = Request(
        name="here", budget=tiny_budget, disk_dir=tmp_path, source="test", gpu_cap_bytes=2 * GIB
    )
    calls: list[tuple[str, int, int]] = []
    profile = measure(request, lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == list(range(calls[0][2]))
    path = tmp_path / "hw.yaml"
    path.write_text(profile.to_yaml())
    assert load_profile(str(path)) == profile
    assert host.mismatch(profile) is None
    assert len(profile.gpus) == torch.cuda.device_count()
    for gpu in profile.gpus:
        assert not gpu.emulated
        assert gpu.name in host.gpu_names()
        assert gpu.memory_bytes == 2 * GIB
        assert gpu.context_bytes > 50 * MIB
        assert gpu.margins is not None
        assert 0 < gpu.margins.context_bytes < 2 * GIB
        assert 0 <= gpu.margins.allocator_bytes < 16 * MIB
        assert 0 <= gpu.margins.fragmentation_bytes < 512 * MIB
        assert set(gpu.gemm) == set(DTYPES)
        assert [point.size_bytes for point in gpu.link.d2h_pageable] == [2**16, 2**20]
    assert profile.concurrent is not None
    assert profile.concurrent.h2d_bytes_per_s is not None
    assert profile.concurrent.d2h_bytes_per_s is not None


def test_pinned_memory_is_pinned_while_it_is_used() -> None:
    """CUDA knows the buffer as pinned, and copies through it keep every byte."""
    with pinned_bytes(3 * MIB) as buffer:
        assert buffer.is_pinned()
        assert torch.equal(buffer.cuda().cpu(), buffer)
    assert not buffer.is_pinned()

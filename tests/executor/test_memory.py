"""What the operating system counts."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from executor import memory
from executor.arena import Arena
from hwprofiles.units import MIB


def test_peak_remembers_and_can_be_reset() -> None:
    """The peak outlives the memory that made it, until it is reset (the kernel counts to within pages)."""
    gc.collect()  # so that nothing of earlier tests goes meanwhile
    memory.reset_peak()
    before = memory.resident_bytes()
    arena = Arena(80 * MIB, torch.device("cpu"), register=False)
    assert memory.resident_bytes() >= before + 79 * MIB
    arena.close()
    assert memory.peak_resident_bytes() >= before + 79 * MIB
    assert memory.resident_bytes() < before + 40 * MIB
    memory.reset_peak()
    assert memory.peak_resident_bytes() < before + 40 * MIB


def test_a_system_that_refuses_to_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the peak cannot be reset it stays that of the whole process."""
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    memory.reset_peak()
    assert memory.peak_resident_bytes() >= memory.resident_bytes() // 2


@pytest.mark.gpu
def test_gpu_peak() -> None:
    """The peak counts what torch held, and the context beside it."""
    device = torch.device("cuda", 0)
    torch.cuda.init()
    memory.reset_peak()
    before = memory.peak_gpu_bytes(device)
    arena = Arena(256 * MIB, device, register=False)
    assert memory.peak_gpu_bytes(device) >= before + 200 * MIB
    arena.close()

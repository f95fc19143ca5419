"""The benchmark of transfers where there is no GPU: the disk, as a plan of the profile reads it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import transfers
from benchmarks.json_result import load_json_result
from benchmarks.transfers import Transfers
from hwprofiles.profile import load_profile
from hwprofiles.units import MIB


def test_the_disk_is_held_against_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slab written twice and read once, nothing left behind, and the figures of the profile beside them."""
    monkeypatch.setattr(transfers, "_SLAB_BYTES", 2 * MIB)
    monkeypatch.setattr(transfers, "_FILE_BYTES", 8 * MIB)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    work, output = tmp_path / "work", tmp_path / "result.json"
    work.mkdir()
    flags = ["-o", str(output), "--hw", "two-core", "--directory", str(work)]
    monkeypatch.setattr(sys, "argv", ["transfers", *flags])
    assert transfers.main() == 0
    found = load_json_result(output, Transfers)
    profile = load_profile("two-core")
    assert profile.disk is not None
    assert found.setting.profile["digest"] == profile.digest()
    names = [row.what.split(",")[0] for row in found.rows]
    assert names == ["disk write of new space", "disk write", "disk read"]
    for row in found.rows:
        assert len(row.seconds) == 4
        assert row.num_bytes == 2 * MIB
        assert min(row.seconds) <= row.num_bytes / row.bytes_per_s <= max(row.seconds)
    fastest = max(point.bytes_per_s.median for point in profile.disk.read)
    assert 0.5 * fastest <= found.rows[-1].beside_bytes_per_s <= fastest
    assert list(work.iterdir()) == []

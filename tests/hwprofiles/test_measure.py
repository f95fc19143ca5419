"""A whole measurement under a tiny budget, with and without an emulated GPU."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch

from hwprofiles import host, measure
from hwprofiles.budget import DTYPES, Budget, Pace
from hwprofiles.errors import UserError
from hwprofiles.measure import Request
from hwprofiles.points import Rate
from hwprofiles.probes import compute
from hwprofiles.probes.attention import fastest
from hwprofiles.probes.compute import Products, matrices
from hwprofiles.probes.concurrent import Contention
from hwprofiles.probes.host import thread_counts
from hwprofiles.probes.process import ProcessCost
from hwprofiles.probes.visits import Visits
from hwprofiles.profile import HardwareProfile, load_profile
from hwprofiles.units import MIB

GPU_BYTES = 64 * MIB
PROCESS_BYTES = 123 * MIB


@pytest.fixture(autouse=True)
def small_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests describe a host without a GPU, and need no figures from beyond its caches."""
    monkeypatch.setattr(measure, "CACHES_READ", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def request_(tiny_budget: Budget, tmp_path: Path) -> Request:
    """A request for this host."""
    return Request(name="here", budget=tiny_budget, disk_dir=tmp_path, source="test")


@pytest.fixture
def light_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not start the process that imports everything; test_margins.py does."""
    cost = ProcessCost(resident_bytes=PROCESS_BYTES, context_bytes=(), spread_bytes=5)
    monkeypatch.setattr(measure, "process_cost", lambda *_: cost)


def read_back(profile: HardwareProfile, path: Path) -> HardwareProfile:
    path.write_text(profile.to_yaml())
    return load_profile(str(path))


@pytest.mark.usefixtures("light_process")
def test_a_host_without_gpu(request_: Request, tmp_path: Path) -> None:
    """Every figure is there, the file reads back equal, this host is recognised, progress is complete."""
    calls: list[tuple[str, int, int]] = []
    threads = torch.get_num_threads()
    profile = measure.measure(request_, lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == list(range(calls[0][2]))
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads
    assert read_back(profile, tmp_path / "hw.yaml") == profile
    assert host.mismatch(profile) is None
    assert profile.gpus == ()
    assert (profile.host.process_bytes, profile.host.process_spread_bytes) == (PROCESS_BYTES, 5)
    assert (
        set(profile.host.gemm) == set(profile.host.gemm_small) == set(profile.host.attention) == set(DTYPES)
    )
    assert profile.host.elementwise_small_bytes_per_s is not None
    assert [point.rows for point in profile.host.gemm["float32"]] == [1, 8]
    assert profile.disk is not None
    together = profile.concurrent
    assert together is not None
    assert together.h2d_bytes_per_s is None
    used = together.cpu_attention_dtype, together.cpu_attention_threads
    assert used == fastest(profile.host.attention, profile.host.logical_cores), (
        "the processors are what computes"
    )


@pytest.mark.usefixtures("light_process")
def test_everything_at_once_is_visited_around_the_disk(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it, between its two visits, and after it, so that visits lie apart."""
    labels: list[str] = []
    visit = Contention.visit

    def noted(everything: Contention) -> None:
        labels.append("visit")
        visit(everything)

    monkeypatch.setattr(Contention, "visit", noted)
    measure.measure(request_, lambda label, *_: labels.append(label))
    kinds = [label.split(",")[0] for label in labels[labels.index("visit") :]]
    assert [kind for kind, _ in groupby(kinds)] == [
        *("visit", "everything at once", "disk read", "disk write", "disk read and write at once"),
        "visit",
    ]
    assert labels.count("visit") == 3


@pytest.mark.usefixtures("light_process")
def test_an_emulated_gpu(request_: Request, tmp_path: Path) -> None:
    """It is an arena of the size asked for with the host's compute and links of its own; caps bind."""
    request = replace(
        request_, emulated_gpu_bytes=2 * GPU_BYTES, gpu_cap_bytes=GPU_BYTES, cpu_cap_bytes=300 * MIB
    )
    calls: list[tuple[str, int, int]] = []
    profile = measure.measure(request, lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == list(range(calls[0][2]))
    assert read_back(profile, tmp_path / "hw.yaml") == profile
    assert host.mismatch(profile) is None
    (gpu,) = profile.gpus
    assert (gpu.emulated, gpu.memory_bytes, gpu.context_bytes) == (True, GPU_BYTES, 0)
    assert gpu.gemm == profile.host.gemm
    assert [point.size_bytes for point in gpu.link.h2d_pinned] == [2**16, 2**20]
    assert profile.host.memory_bytes == profile.host.memory_limits_bytes["cap"] == 300 * MIB
    assert profile.concurrent is not None
    assert profile.concurrent.h2d_bytes_per_s is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu_cap_bytes": 2**30}, "--gpu-mem needs a GPU"),
        ({"emulated_gpu_bytes": 2**50}, "--emulate-gpu .* more than the host's memory"),
        ({"emulated_gpu_bytes": 1000}, "too small to measure"),
        ({"disk_dir": Path("/no/such/place")}, "/no/such/place is not a directory"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(
    request_: Request, changes: dict[str, int | Path], message: str
) -> None:
    """Refused with one line before anything is measured."""
    calls: list[str] = []
    with pytest.raises(UserError, match=message):
        measure.measure(replace(request_, **changes), lambda label, *_: calls.append(label))
    assert calls == []


def test_thread_counts_cover_all_cores(tiny_budget: Budget) -> None:
    """A quick measurement takes 1, three quarters and all; a full one powers of two and the cores too."""
    cpu = replace(host.processor(), physical_cores=12, logical_cores=24)
    assert thread_counts(cpu, tiny_budget) == (1, 18, 24)
    full = replace(tiny_budget, every_thread_count=True)
    assert thread_counts(cpu, full) == (1, 2, 4, 8, 12, 16, 18, 24)


def test_a_slow_matrix_product_is_made_smaller(tiny_budget: Budget) -> None:
    """Many rows do not overrun the slice: fewer columns are taken instead."""
    budget = replace(tiny_budget, gemm_rows=(1, 4096))
    labels: list[str] = []
    pace = Pace(0.01, 6, lambda label, *_: labels.append(label))
    products = Products(torch.device("cpu"), budget.gemm_rows, 16 * MIB, Visits(pace, 1), num_columns=1024)
    products.visit()
    assert [len(points) for points in products.curves().values()] == [2, 2, 2]
    assert len(labels) == 6


def test_few_rows_are_multiplied_with_all_matrices_of_a_layer() -> None:
    """Four square ones, a tall and a wide one on the CPU, 12 squares in all; elsewhere a square one."""
    cpu = matrices(torch.device("cpu"), 64, rows=8)
    assert sum(rows * columns for rows, columns in cpu) == 12 * 64**2
    assert {(256, 64), (64, 256)} < set(cpu)
    assert (
        matrices(torch.device("cpu"), 64, rows=1024)
        == matrices(torch.device("cuda"), 64, rows=8)
        == ((64, 64),)
    )


def test_a_gpu_that_slows_down_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is half-way between idle and settled, and the spread reaches both."""
    monkeypatch.setattr(compute, "_SETTLE_S", 0.2)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    is_warm = False

    def run(num_rounds: int) -> float:
        nonlocal is_warm
        is_warm |= num_rounds > 1  # nothing is measured in so many rounds: each takes more than the slice
        return num_rounds * (1.25 if is_warm else 1.0)

    assert compute._rate_while_heating(run, 100.0, 0.0) == (Rate(median=90.0, spread=0.1111), 100.0)

"""What a plan may hold and how fast tasks run, from a profile and caps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles.errors import UserError
from hwprofiles.points import (
    AttentionPoint,
    DiskPoint,
    GroupedAttention,
    Kernels,
    Packed,
    Rate,
)
from hwprofiles.profile import Calibration, Concurrent, HardwareProfile, load_profile
from planner.disk_rates import full_rate
from planner.factors import HANDOVER, LAUNCH
from planner.ledger import kernels_host_bytes
from planner.machine import UNMEASURED_KERNELS_HOST_BYTES, Caps, make_target
from planner.model import load_model
from planner.rate_curve import Curve
from planner.rates import make_rates
from tests.planner.problems import GB, MB, emulated


def test_a_curve_is_straight_in_log_scales() -> None:
    """Between points a power law is exact, above the last the rate stays, below the first time stays."""
    curve = Curve(((10.0, 100.0), (1000.0, 10000.0)))
    assert curve.at(100) == pytest.approx(1000)
    assert curve.at(10**6) == 10000
    assert curve.at(1) == pytest.approx(10)
    assert Curve(((16.0, 4.0),), below=0.5).at(4) == pytest.approx(2)


def test_limits_are_the_smaller_of_machine_and_cap() -> None:
    """A cap above what there is changes nothing; a profile that measured nobody else keeps 2% of host memory free."""
    profile = load_profile("t4-host")
    target = make_target(profile, Caps(gpu_bytes=8 * GB, cpu_bytes=100 * GB, disk_bytes=9 * 10**15))
    assert target.gpu_bytes == 8 * GB
    assert (target.cpu_bytes, target.headroom_bytes) == (98 * GB, 2 * GB)
    assert target.disk_bytes == profile.disk.free_bytes if profile.disk else 0
    free = make_target(profile, Caps(gpu_bytes=99 * GB))
    assert free.gpu_bytes == profile.gpus[0].memory_bytes
    assert free.cpu_bytes == pytest.approx(0.98 * profile.host.memory_bytes)


def test_an_emulated_gpu_is_taken_out_of_host_memory() -> None:
    """The cpu tier is left what the arena does not take."""
    profile = emulated()
    target = make_target(profile, Caps())
    assert target.emulated
    assert target.gpu_bytes + target.cpu_bytes <= profile.host.memory_bytes
    smaller = make_target(profile, Caps(gpu_bytes=100 * MB))
    assert smaller.cpu_bytes > target.cpu_bytes


def test_a_gpu_cap_without_a_gpu_is_refused() -> None:
    """--gpu-mem on a profile without one is a mistake."""
    with pytest.raises(UserError, match="no GPU"):
        make_target(load_profile("two-core"), Caps(gpu_bytes=GB))
    assert make_target(load_profile("two-core"), Caps()).compute_tier == "cpu"


def test_a_dtype_without_rates_is_named() -> None:
    """The error lists the dtypes the profile has."""
    profile = load_profile("t4-host")
    gpu = replace(profile.gpus[0], gemm={"float16": profile.gpus[0].gemm["float16"]})
    with pytest.raises(UserError, match=r"bfloat16; choose --dtype among: float16"):
        make_rates(replace(profile, gpus=(gpu,)), "bfloat16")


def test_attention_leaves_some_cores_to_io() -> None:
    """The fastest thread count among those that leave a quarter of the cores."""
    profile = load_profile("t4-host")
    points = tuple(AttentionPoint(threads=n, bytes_per_s=Rate(median=n * 1e9)) for n in (1, 8, 12, 24, 32))
    host = replace(profile.host, logical_cores=32, attention={"float16": points})
    rates = make_rates(replace(profile, host=host), "float16")
    assert (rates.attention_threads, rates.cpu_attention_bytes_per_s) == (24, 24e9)


def test_packed_attention_by_fewer_threads_than_it_was_measured_with() -> None:
    """Slower as attention to what is not packed is; none where a run unpacks first, or the profile is older."""
    profile = load_profile("t4-host")
    points = tuple(AttentionPoint(threads=n, bytes_per_s=Rate(median=n * 1e9)) for n in (8, 24, 32))
    host = replace(profile.host, logical_cores=32, attention={"float16": points})

    def rate(attend: Rate | None) -> float | None:
        one = Rate(median=1e9)
        packed = Packed(
            unpack_values_per_s=one, pack_values_per_s=one, attend_values_per_s=attend, issue_s=None
        )
        found = make_rates(replace(profile, host=replace(host, packed=packed)), "float16")
        return found.cpu_packed_attention_values_per_s

    assert rate(Rate(median=40e9)) == pytest.approx(30e9)
    assert rate(None) is None
    assert (
        make_rates(
            replace(profile, host=replace(host, packed=None)), "float16"
        ).cpu_packed_attention_values_per_s
        is None
    )


def test_packed_attention_by_the_threads_it_was_measured_with() -> None:
    """In values of 4 bits and their constants; by as many threads as a plan has, or fewer where those were faster."""
    profile = load_profile("t4-host")
    points = tuple(AttentionPoint(threads=n, bytes_per_s=Rate(median=n * 1e9)) for n in (8, 24, 32))
    packed = tuple(
        AttentionPoint(threads=n, bytes_per_s=Rate(median=rate))
        for n, rate in ((8, 9e9), (24, 7e9), (32, 11e9))
    )
    grouped = GroupedAttention(group=8, threads=24, bytes_per_s=Rate(median=4.5e9))
    host = replace(
        profile.host,
        logical_cores=32,
        attention={"float16": points},
        packed_attention=packed,
        grouped_packed_attention=grouped,
    )
    rates = make_rates(replace(profile, host=host), "float16")
    assert rates.attention_threads == 24
    assert rates.cpu_packed_attention_values_per_s == pytest.approx(9e9 * 64 / 36)
    assert rates.packed_query_head_share == pytest.approx(
        1 / 7
    )  # 24 threads were slower than 8: they are not
    assert make_rates(profile, "float16").packed_query_head_share is None


def test_disk_threads_are_as_few_as_are_fast() -> None:
    """A second thread that doubles the rate is used, eight that bring 1% are not."""
    profile = load_profile("t4-host")
    assert profile.disk
    read = tuple(
        DiskPoint(block_bytes=MB, threads=threads, bytes_per_s=Rate(median=rate))
        for threads, rate in ((1, 1e9), (2, 2e9), (8, 2.02e9))
    )
    rates = make_rates(replace(profile, disk=replace(profile.disk, read=read)), "float16")
    assert rates.io_threads == 2
    assert rates.disk_read.at(MB) == pytest.approx(1e9)
    assert rates.disk_read.at(2 * MB) == pytest.approx(2e9)


def test_contention_is_what_was_measured_at_once() -> None:
    """Parts that keep half of their rate each count as half a lane each."""
    profile = load_profile("two-core")
    assert profile.disk
    [attention] = [p for p in profile.host.attention["float32"] if p.threads == 2]
    together = Concurrent(
        h2d_bytes_per_s=None,
        d2h_bytes_per_s=None,
        cpu_attention_bytes_per_s=Rate(median=attention.bytes_per_s.median / 2),
        disk_read_bytes_per_s=Rate(median=full_rate(profile.disk.read) / 2),
        cpu_attention_dtype="float32",
        cpu_attention_threads=2,
    )
    assert make_rates(replace(profile, concurrent=together), "float32").parallel == pytest.approx(1)


def test_calibration_multiplies_overheads() -> None:
    """Two factors are in the launch and hand-over times, the others are asked for by name."""
    profile = load_profile("t4-host")
    calibration = Calibration(
        factors={LAUNCH: 3.0, HANDOVER: 2.0, "h2d": 1.5}, num_runs=1, error_before=0.3, error_after=0.1
    )
    rates, plain = (
        make_rates(replace(profile, calibration=calibration), "float16"),
        make_rates(profile, "float16"),
    )
    assert rates.operation_s == pytest.approx(3 * plain.operation_s)
    assert rates.task_overhead_s == pytest.approx(2 * plain.task_overhead_s)
    assert (rates.factor("h2d"), rates.factor("d2h")) == (1.5, 1.0)


def test_grouped_attention_is_a_share_for_each_further_query_head() -> None:
    """At half the rate with 8 query heads to one, each of 7 adds a seventh; 0 where no points can be compared."""
    profile = load_profile("two-core")
    point = profile.host.attention["float32"][-1]
    half = Rate(median=point.bytes_per_s.median / 2, spread=0.0)
    shared = GroupedAttention(group=8, threads=point.threads, bytes_per_s=half)
    host = replace(profile.host, grouped_attention={"float32": shared})
    assert make_rates(replace(profile, host=host), "float32").query_head_share == pytest.approx(1 / 7)
    assert make_rates(replace(profile, host=host), "bfloat16").query_head_share == 0
    one, two = (found.bytes_per_s.median for found in profile.host.attention["float32"])
    fewer = make_rates(replace(profile, host=replace(host, logical_cores=1)), "float32")
    assert fewer.attention_threads == 1
    assert fewer.query_head_share == pytest.approx(
        2 * one / two / 7
    )  # as much arithmetic, by half the threads
    elsewhere = replace(shared, threads=99)
    host = replace(profile.host, grouped_attention={"float32": elsewhere})
    assert make_rates(replace(profile, host=host), "float32").query_head_share == 0


def test_kernels_take_host_memory_by_kind_of_model() -> None:
    """As measured, or as an H200 host had it where a profile does not say; none without a GPU, emulated or missing."""
    profile = load_profile("h200-host")
    kernels: dict[Kernels, int] = {
        "opt": 50 * MB,
        "rotary": 100 * MB,
        "experts": 300 * MB,
        "few_rows": 7 * MB,
    }
    older: dict[Kernels, int] = {"rotary": 100 * MB, "experts": 300 * MB, "few_rows": 7 * MB}
    for found, expected in (
        (kernels, kernels),
        (older, {**older, "opt": UNMEASURED_KERNELS_HOST_BYTES["opt"]}),
        ({}, UNMEASURED_KERNELS_HOST_BYTES),
    ):
        machine = replace(profile, gpus=(replace(profile.gpus[0], kernels_host_bytes=found),))
        assert _kernels_host_bytes(machine) == expected
    for machine in (emulated(), load_profile("two-core")):
        assert set(_kernels_host_bytes(machine).values()) == {0}


def _kernels_host_bytes(profile: HardwareProfile) -> dict[str, int]:
    """By kind of model; and of few rows, which a mixture of experts looks up with what it calls anyway."""
    target, models = make_target(profile, Caps()), ("opt-1.3b", "llama-3-70b", "mixtral-8x7b")
    few, many = ([kernels_host_bytes(load_model(name), rows, target) for name in models] for rows in (16, 17))
    more = [few - many for few, many in zip(few, many, strict=True)]
    assert more == [more[0], more[0], 0]
    return {**dict(zip(("opt", "rotary", "experts"), many, strict=True)), "few_rows": more[0]}

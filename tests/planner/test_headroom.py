"""Headroom and margins: host memory left to others, and what is held beyond what is asked for, in the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from hwprofiles.points import NO_MARGINS, Margins
from hwprofiles.profile import HardwareProfile, load_profile
from planner.cli import main
from planner.headroom import COME_AND_GO, Headroom, parse_headroom
from planner.ledger import make_ledger
from planner.machine import UNMEASURED_GPU, Caps, make_target
from planner.plan import load_plan
from planner.problem import Problem, make_problem
from planner.request import Request
from planner.search import search
from planner.workload import Workload
from tests.planner.problems import GB, MB, emulated, policy_of, problem_of, small_opt, small_t4

MEASURED = Margins(context_bytes=30 * MB, allocator_bytes=2 * MB, fragmentation_bytes=50 * MB)
SPREAD = 5 * MB


def occupied(num_bytes: int, limits: Mapping[str, int]) -> HardwareProfile:
    """A host of which others held so much when it was measured."""
    profile = load_profile("two-core")
    host = replace(
        profile.host,
        memory_bytes=min(limits.values()),
        memory_limits_bytes=limits,
        occupied_bytes=num_bytes,
    )
    return replace(profile, host=host)


def with_margins(spread: int | None, margins: Margins | None) -> HardwareProfile:
    """The small T4 host with this spread of its processes, and these margins of its GPU."""
    profile = small_t4()
    gpus = (replace(profile.gpus[0], margins=margins),)
    return replace(profile, host=replace(profile.host, process_spread_bytes=spread), gpus=gpus)


@pytest.mark.parametrize(
    ("text", "of_100_gb"),
    [("5%", 5 * GB), ("2GB", 2 * GB), ("0%", 0), ("0", 0), ("2.5 %", 2.5 * GB), ("1TB", 100 * GB)],
)
def test_a_share_or_a_size(text: str, of_100_gb: float) -> None:
    """Both are understood; more than there is leaves nothing."""
    assert parse_headroom(text).of(100 * GB) == of_100_gb


@pytest.mark.parametrize("text", ["-1%", "100%", "nan%", "some%", "%", "-2GB", "much"])
def test_what_is_no_headroom(text: str) -> None:
    """The line names the value."""
    with pytest.raises(UserError, match=r"headroom|size"):
        parse_headroom(text)


@pytest.mark.parametrize(
    ("limits", "cap", "headroom"),
    [
        ({"mem_total": 100 * GB}, None, 7500 * MB),  # what others held, and 1.5%
        ({"mem_total": 100 * GB}, 97 * GB, 4500 * MB),  # 3 GB of it lies beyond the cap
        ({"mem_total": 100 * GB}, 50 * GB, 0),
        ({"mem_total": 100 * GB, "cgroup": 80 * GB}, None, 7200 * MB),
        ({"mem_total": 100 * GB, "cap": 95 * GB}, None, 2500 * MB),  # measured under a cap
    ],
)
def test_others_keep_what_they_held(limits: dict[str, int], cap: int | None, headroom: int) -> None:
    """Without --headroom, unless they find it beyond the cap; with it, what was said."""
    target = make_target(occupied(6 * GB, limits), Caps(cpu_bytes=cap))
    whole = min(limits.values()) if cap is None else cap
    assert (target.headroom_bytes, target.cpu_bytes) == (headroom, whole - headroom)
    said = make_target(occupied(6 * GB, limits), Caps(cpu_bytes=cap, headroom=Headroom(share=0.1)))
    assert (said.headroom_bytes, said.cpu_bytes) == (whole // 10, whole - whole // 10)


def test_the_kernel_keeps_a_share_of_what_is_registered() -> None:
    """What a plan may hold, and that share of it, fit beside what others held; a cap may leave room for it."""
    profile = small_t4()
    gpus = (replace(profile.gpus[0], kernel_share=0.05),)
    profile = replace(profile, gpus=gpus, host=replace(profile.host, occupied_bytes=2 * GB))
    whole = profile.host.memory_bytes
    target = make_target(profile, Caps())
    left = whole - 2 * GB - COME_AND_GO * whole
    assert 0.995 * left < target.cpu_bytes * 1.05 <= left + 1
    assert make_target(profile, Caps(cpu_bytes=100 * GB)).cpu_bytes == 100 * GB


def test_an_emulated_gpus_arena_is_not_others_memory() -> None:
    """The arena is taken out of the host first; what is left beyond a cap may be others'."""
    profile = emulated()
    profile = replace(profile, host=replace(profile.host, occupied_bytes=GB))
    room = profile.host.memory_bytes - profile.gpus[0].memory_bytes
    left = GB + round(COME_AND_GO * room)
    assert make_target(profile, Caps()).cpu_bytes == room - left
    assert make_target(profile, Caps(cpu_bytes=room - left)).headroom_bytes == 0


@settings(max_examples=10)
@given(cpu=st.integers(90, 400), shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)))
def test_headroom_stays_free(cpu: int, shares: tuple[float, float]) -> None:
    """A plan and its headroom are within the memory; what fits beside more of it also fits beside less."""
    limits = [
        Caps(gpu_bytes=90 * MB, cpu_bytes=cpu * MB, headroom=Headroom(share=share))
        for share in sorted(shares)
    ]
    ample, tight = (small_problem(caps) for caps in limits)
    assert tight.target.cpu_bytes <= ample.target.cpu_bytes
    plan = search(tight, Request())
    if plan:
        assert plan.ledger.peak_bytes("cpu") + plan.hardware.headroom_bytes <= cpu * MB
        assert ample.fits(plan.policy)


def small_problem(caps: Caps) -> Problem:
    """A model of which the GPU holds a part."""
    return make_problem(small_opt(), Workload(prompt_len=32, gen_len=8, num_prompts=12), small_t4(), caps)


def test_margins_are_in_the_ledger_and_nobodys_arena() -> None:
    """Each kind has its entry in every phase; the plan is that much larger, and what is allocated is the same."""
    policy = policy_of()
    without = problem_of(profile=with_margins(0, NO_MARGINS)).place(policy)[1]
    ledger = problem_of(profile=with_margins(SPREAD, MEASURED)).place(policy)[1]
    margins = [entry for entry in ledger.entries if entry.purpose.startswith("margin: ")]
    assert not any(entry.arena for entry in margins)
    assert {(entry.tier, entry.purpose): entry.peak_bytes for entry in margins} == {
        ("gpu", "margin: context"): 30 * MB,
        ("gpu", "margin: allocator"): 2 * MB,
        ("gpu", "margin: fragmentation"): 50 * MB,
        ("cpu", "margin: process"): SPREAD,
    }
    assert ledger.peak_bytes("gpu") == without.peak_bytes("gpu") + 82 * MB
    assert ledger.peak_bytes("cpu") == without.peak_bytes("cpu") + SPREAD
    assert [e for e in ledger.entries if e.arena] == [e for e in without.entries if e.arena]


def test_a_search_keeps_to_the_limits_with_margins() -> None:
    """What margins take is no longer there for weights and cache."""
    caps = {"gpu": 300 * MB, "cpu": 400 * MB, "prompt_len": 32, "gen_len": 8, "num_prompts": 12}
    plans = [
        search(problem_of(small_opt(), with_margins(spread, margins), **caps), Request())
        for spread, margins in ((0, NO_MARGINS), (SPREAD, MEASURED))
    ]
    for plan in plans:
        assert plan is not None
        assert not plan.ledger.shortfalls(plan.hardware)
    rates = [plan.prediction.throughput_tokens_per_s for plan in plans if plan]
    assert rates[1] <= rates[0] * 1.005


def test_a_gpu_whose_margins_nobody_measured_has_what_runs_were_over() -> None:
    """A stated default for real GPUs; an emulated one is part of the host's process."""
    unmeasured = make_target(with_margins(None, None), Caps())
    assert (unmeasured.margins, unmeasured.process_spread_bytes) == (UNMEASURED_GPU, 0)
    assert make_target(emulated(), Caps()).margins == NO_MARGINS
    assert make_target(load_profile("two-core"), Caps()).margins == NO_MARGINS


def test_a_plan_from_before_margins(tmp_path: Path) -> None:
    """It loads with none, and its ledger is still that of its placement."""
    plan = problem_of().plan(policy_of())
    data = yaml.safe_load(plan.to_yaml())
    for key in ("margins", "process_spread_bytes", "headroom_bytes"):
        del data["hardware"][key]
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(data))
    loaded = load_plan(path)
    assert loaded.hardware.headroom_bytes == 0
    again = make_ledger(
        loaded.model.spec(), loaded.workload, loaded.policy, loaded.placement, loaded.hardware
    )
    assert again == loaded.ledger


def test_the_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`--headroom` lowers the limit of search and estimate, is shown, and a mistake is one line."""
    model = ("--model", "opt-125m", "--hw", "t4-host", "--prompt-len", "32", "--gen-len", "8")
    given_ = (
        "--percent",
        "0",
        "100",
        "0",
        "100",
        "0",
        "100",
        "--gpu-batch-size",
        "1",
        "--num-gpu-batches",
        "1",
    )
    for command, rest in (("search", ("--num-prompts", "2")), ("estimate", given_)):
        path = tmp_path / f"{command}.yaml"
        flags = (*rest, "--cpu-mem", "50GB", "--headroom", "10%", "-o", str(path))
        assert main([command, *model, *flags]) == 0
        assert "headroom" in capsys.readouterr().out
        assert load_plan(path).hardware.cpu_bytes == 45 * GB
    assert main(["search", *model, "--headroom", "-3GB"]) == 2
    assert "must not be negative" in capsys.readouterr().err


def test_registered_memory_takes_some_on_the_gpu() -> None:
    """The tables of its pages are in the ledger, and a search leaves room for them; an emulated GPU has none."""
    profile = load_profile("t4-host")
    problem = problem_of("opt-30b", replace(profile, gpus=(replace(profile.gpus[0], mapped_share=0.01),)))
    plan = search(problem, Request())
    assert plan is not None
    registered = sum(entry.peak_bytes for entry in plan.ledger.entries if entry.arena and entry.tier == "cpu")
    assert registered > 10**11
    assert plan.ledger.bytes_of("gpu", "mapped host memory") == round(0.01 * registered)
    assert plan.ledger.peak_bytes("gpu") <= plan.hardware.gpu_bytes
    assert make_target(emulated(), Caps()).mapped_share == 0.0

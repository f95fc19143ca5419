"""Estimates of given policies: the field report's sums, and the nearest changes that fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile, load_profile
from hwprofiles.units import GIB
from planner.advise import estimate, fitting_changes
from planner.policy import Policy, Split
from planner.problem import Problem
from tests.planner.problems import GB, ON_CPU, ON_GPU, policy_of, problem_of, small_opt

FIELD = Split(gpu=0.2, cpu=0.8, disk=0)


def field_host() -> HardwareProfile:
    """A host of 125 GB whose GPU has 32 GB, so that host memory is what falls short."""
    t4 = load_profile("t4-host")
    gpu = replace(t4.gpus[0], memory_bytes=32 * GB)
    return replace(t4, gpus=(gpu,), host=replace(t4.host, memory_bytes=125 * GB))


def field_problem(**caps: int) -> Problem:
    return problem_of("opt-30b", field_host(), prompt_len=512, gen_len=32, **caps)


def field_policy(batches: int, **changes: object) -> Policy:
    return replace(
        policy_of(FIELD, ON_CPU, ON_CPU, size=48, batches=batches, prefill_rows=8),
        **changes,  # type: ignore[arg-type]
    )


def test_the_field_reports_sums_come_out() -> None:
    """OPT-30B, 20 80 0 100 0 100, 48 x 4: weights 44.1, cache 133.9, activations 1.4, together 179.3 GiB."""
    _, ledger = field_problem().place(field_policy(4))
    sizes = {
        purpose: ledger.bytes_of("cpu", purpose) / GIB for purpose in ("weights", "cache", "activations")
    }
    assert sizes["cache"] == pytest.approx(133.875, rel=0.001)
    assert sizes["activations"] == pytest.approx(1.395 * 512 / 544, rel=0.001)
    decoder = 55.803 - ledger.bytes_of("gpu", "ends") / GIB
    assert sizes["weights"] == pytest.approx(0.8 * decoder, rel=0.003)
    assert sum(sizes.values()) == pytest.approx(179.27, rel=0.003)


def test_the_field_report_is_refused_with_its_sum() -> None:
    """The error shows the sum, the limit and what would fit."""
    with pytest.raises(UserError) as error:
        estimate(field_problem(), field_policy(4))
    message = str(error.value)
    assert "weights 44.1 GiB + cache 133.9 GiB + activations 1.3 GiB = 179.3 GiB" in message
    assert "its limit is 114.1 GiB" in message
    assert "gpu tier" not in message
    assert "--weight-bits 4 --kv-bits 4" in message or "--kv-bits 4" in message
    assert "\n" not in message


def test_every_short_tier_is_named() -> None:
    """With 16 GB on the GPU both tiers are too small, and both are explained."""
    with pytest.raises(UserError, match=r"gpu tier needs .* cpu tier needs "):
        estimate(field_problem(gpu=16 * GB), field_policy(4))


@pytest.mark.parametrize("batches", [4, 3, 2])
def test_the_changes_named_do_fit_and_the_next_larger_block_does_not(batches: int) -> None:
    """The largest number of gpu batches and the largest gpu batch are found, and 4 bits are tried."""
    problem, policy = field_problem(), field_policy(batches)
    if problem.fits(policy):
        pytest.skip("this one fits")
    changes = list(fitting_changes(problem, policy))
    assert changes
    for change in changes:
        flags = dict(re.findall(r"(--[a-z-]+) (\d+)", change))
        assert problem.fits(changed(policy, flags))
        for flag in ("--num-gpu-batches", "--gpu-batch-size"):
            if flag in flags:
                assert not problem.fits(changed(policy, flags | {flag: str(int(flags[flag]) + 1)}))


def changed(policy: Policy, flags: dict[str, str]) -> Policy:
    names = {
        "--num-gpu-batches": "num_gpu_batches",
        "--gpu-batch-size": "gpu_batch_size",
        "--kv-bits": "kv_bits",
        "--weight-bits": "weight_bits",
    }
    values: dict[str, object] = {names[flag]: int(value) for flag, value in flags.items()}
    result = replace(policy, **values)  # type: ignore[arg-type]
    return replace(result, prefill_rows=min(result.prefill_rows, result.gpu_batch_size))


def test_a_policy_that_fits_is_priced_as_it_is() -> None:
    """An estimate changes nothing of the policy."""
    policy = policy_of()
    assert estimate(problem_of(small_opt()), policy).policy == policy


def test_gpu_percents_without_a_gpu_are_refused() -> None:
    """The error names the profile and what was put on the missing tier."""
    problem = problem_of(small_opt(), load_profile("two-core"))
    with pytest.raises(UserError, match=r"two-core has no GPU, but 100 percent of cache"):
        estimate(problem, policy_of(ON_CPU, ON_GPU, ON_CPU))


def test_a_policy_no_change_can_save_says_so() -> None:
    """Where even one sequence in 4 bits is too large, the advice is another split."""
    problem = problem_of("opt-175b", load_profile("t4-host"), cpu=60 * GB)
    with pytest.raises(UserError, match="move shares to a larger tier"):
        estimate(problem, policy_of(ON_CPU, ON_CPU, ON_CPU))

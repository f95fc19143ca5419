"""Policies and plan files: what they refuse, and what they call by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hwprofiles.errors import UserError
from planner.plan import load_plan
from planner.policy import Policy, Split
from planner.workload import Workload
from tests.planner.problems import ON_CPU, policy_of, problem_of, small_opt


@pytest.mark.parametrize(
    ("shares", "complaint"),
    [
        ((0.5, 0.4, 0.0), "sum to 0.9 instead of 1"),
        ((0.6, 0.6, 0.0), "sum to 1.2 instead of 1"),
        ((-0.1, 1.1, 0.0), "share on gpu is -0.1"),
        ((0.0, 1.5, -0.5), "share on cpu is 1.5"),
        ((math.nan, 0.5, 0.5), "share on gpu is nan"),
    ],
)
def test_a_split_sums_to_one(shares: tuple[float, float, float], complaint: str) -> None:
    """Shares are fractions, and all bytes are somewhere."""
    gpu, cpu, disk = shares
    with pytest.raises(UserError, match=complaint):
        Split(gpu=gpu, cpu=cpu, disk=disk)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: policy_of(size=0), "gpu_batch_size is 0"),
        (lambda: policy_of(batches=-1), "num_gpu_batches is -1"),
        (lambda: policy_of(cpu_attention=1.5), "cpu_attention is 1.5"),
    ],
)
def test_a_policy_has_sound_numbers(make: Callable[[], Policy], complaint: str) -> None:
    """Each error names the field and the value."""
    with pytest.raises(UserError, match=complaint):
        make()


def test_a_workload_has_tokens() -> None:
    """Zero prompts, or prompts of no length, are mistakes."""
    with pytest.raises(UserError, match="at least one prompt"):
        Workload(prompt_len=1, gen_len=1, num_prompts=0)
    with pytest.raises(UserError, match="--gen-len"):
        Workload(prompt_len=1, gen_len=0)


Edit = Callable[[dict[str, dict[str, object]]], object]
EDITS: dict[str, tuple[Edit, str]] = {
    "unknown key": (
        lambda data: data["policy"].update(colour="red"),
        "colour.*another version.s.*make the file again",
    ),
    "missing key": (lambda data: data["policy"].pop("prefill_rows"), "prefill_rows"),
    "wrong type": (lambda data: data["workload"].update(prompt_len="long"), "prompt_len"),
    "newer schema": (lambda data: data.update(schema_version=2), "schema_version is 2"),  # type: ignore[arg-type]
    "split of 90 percent": (
        lambda data: data["policy"].update(weights={"gpu": 0.4, "cpu": 0.5, "disk": 0}),
        "sum to 0.9",
    ),
    "unknown letter": (
        lambda data: data["placement"].update(weight_tiers=["x"]),
        "only the letters g, c and d",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_changed_plan_is_refused_by_the_key(tmp_path: Path, name: str) -> None:
    """The error names the file and the key."""
    data = yaml.safe_load(problem_of(small_opt()).plan(policy_of(ON_CPU)).to_yaml())
    edit, complaint = EDITS[name]
    edit(data)
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=complaint) as error:
        load_plan(path)
    assert "plan.yaml" in str(error.value)
    assert "\n" not in str(error.value)

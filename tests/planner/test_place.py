"""Placement: fractions realised as whole tensors and whole sequences."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import DTYPE_BYTES, tensor_bytes
from planner.model import ModelSpec, load_model
from planner.place import place
from planner.placement import TIER_LETTER
from planner.policy import TIERS, Policy, Split, Tier
from tests.planner.problems import ON_CPU, ON_GPU, policy_of, small_mixtral, small_opt

MODELS = (small_opt(), small_mixtral(), small_opt(num_layers=1, hidden_size=128))


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Any three shares that sum to 1, whole tiers included."""
    first, second = sorted(draw(st.tuples(*[st.sampled_from((0, 1)) | st.floats(0, 1)] * 2)))
    return Split(gpu=first, cpu=second - first, disk=1 - second)


def layer_sizes(model: ModelSpec, policy: Policy) -> list[list[int]]:
    element = DTYPE_BYTES[model.dtype]
    return [[tensor_bytes(t, policy.weight_bits, element) for t in layer.tensors] for layer in model.layers]


def held_by_layer(sizes: list[list[int]], letters: tuple[str, ...], tier: Tier) -> list[int]:
    return [
        sum(n for n, letter in zip(nbytes, tensors, strict=True) if TIER_LETTER[letter] == tier)
        for nbytes, tensors in zip(sizes, letters, strict=True)
    ]


@pytest.mark.parametrize("percent", [1, 5, 10, 20, 25, 30, 33, 60, 80, 95])
def test_any_percent_of_weights_is_reached_within_one_tensor(percent: int) -> None:
    """Not only 0, 8.3, 41.7, 50, ... percent, which is all that rounding each layer to midpoints reaches."""
    model = load_model("opt-30b")
    policy = policy_of(Split(gpu=percent / 100, cpu=1 - percent / 100, disk=0))
    sizes = layer_sizes(model, policy)
    total, largest = sum(map(sum, sizes)), max(map(max, sizes))
    realised = place(model, policy, "gpu").weights
    assert abs(realised.gpu - percent / 100) * total <= largest


@settings(max_examples=60)
@given(model=st.sampled_from(MODELS), split=splits(), bits=st.sampled_from((4, 16)))
def test_weights_are_spread_evenly_and_within_one_tensor(model: ModelSpec, split: Split, bits: int) -> None:
    """At every depth each tier holds its share to within one tensor, the faster ones never more than it."""
    policy = policy_of(split, weight_bits=bits)
    sizes = layer_sizes(model, policy)
    largest = max(map(max, sizes))
    placement = place(model, policy, "gpu")
    wanted = dict(split.items())
    slowest = [tier for tier in TIERS if wanted[tier] > 1e-6][-1]
    for tier in TIERS:
        held = accumulate(held_by_layer(sizes, placement.weight_tiers, tier))
        for so_far, total in zip(held, accumulate(map(sum, sizes)), strict=True):
            short = wanted[tier] * total - so_far
            if tier == slowest:
                assert -2 * largest - 1 <= short <= 1
            else:
                assert -1 <= short <= largest + 1


@settings(max_examples=100)
@given(split=splits(), size=st.integers(1, 9), batches=st.integers(1, 7), share=st.floats(0, 1))
def test_rows_are_whole_and_complete(split: Split, size: int, batches: int, share: float) -> None:
    """Every gpu batch has all its rows, no tier misses its request by 2 rows, faster ones never exceed it."""
    policy = policy_of(ON_GPU, split, split, size=size, batches=batches, cpu_attention=share)
    placement = place(small_opt(num_layers=1), policy, "gpu")
    assert all(rows.total == size for rows in placement.cache_rows + placement.activation_rows)
    assert all(min(count for _, count in rows.counts()) >= 0 for rows in placement.cache_rows)
    far = sum(rows.total - rows.gpu for rows in placement.cache_rows)
    attended = sum(rows.cpu_attend + rows.disk_attend for rows in placement.cache_rows)
    assert abs(attended - share * far) <= 1
    wanted, block = dict(split.items()), size * batches
    slowest = [tier for tier in TIERS if wanted[tier] > 1e-6][-1]
    for tier, realised in placement.cache.items():
        short = (wanted[tier] - realised) * block
        assert -2.01 <= short <= 0.01 if tier == slowest else -0.01 <= short < 2


def test_nothing_is_attended_by_the_cpu_beside_a_computing_cpu() -> None:
    """Where the CPU computes everything, rows are attended in their place or loaded from disk."""
    policy = policy_of(cache=Split(gpu=0, cpu=0.5, disk=0.5), cpu_attention=1.0)
    assert all(
        rows.cpu_attend + rows.disk_attend == 0 for rows in place(small_opt(), policy, "cpu").cache_rows
    )


def test_cpu_rows_are_attended_before_disk_rows() -> None:
    """What the CPU attends it takes from its own memory first."""
    policy = policy_of(cache=Split(gpu=0, cpu=0.5, disk=0.5), size=4, batches=1, cpu_attention=0.75)
    (rows,) = place(small_opt(), policy, "gpu").cache_rows
    assert (rows.cpu, rows.cpu_attend, rows.disk, rows.disk_attend) == (0, 2, 1, 1)


def test_all_on_one_tier_stays_there() -> None:
    """A share of 100 percent leaves nothing elsewhere."""
    placement = place(small_opt(), policy_of(), "gpu")
    assert set("".join(placement.weight_tiers)) == {"c"}
    assert (placement.weights, placement.cache) == (ON_CPU, ON_CPU)

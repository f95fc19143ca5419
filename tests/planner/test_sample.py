"""Samples: a few tokens and layers, played, give the time of all of them."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.profile import load_profile
from planner.plan import PHASES, Phase
from planner.policy import Policy, Split
from planner.rates import Rates
from planner.sample import Sample, representative, thinned
from planner.simulate import phase_times, simulate
from planner.sizes import Sizes
from tests.planner.problems import ON_CPU, ON_GPU, policy_of, problem_of, small_gemma2, small_opt

NUM_LAYERS = 40


def sizes_of(policy: Policy, *, prompt_len: int = 64, gen_len: int = 13) -> tuple[Sizes, Rates]:
    problem = problem_of(
        small_opt(NUM_LAYERS, 512), load_profile("t4-host"), prompt_len=prompt_len, gen_len=gen_len
    )
    placement, _ = problem.place(policy)
    return Sizes(problem.model, problem.workload, policy, placement, "gpu"), problem.rates


def seconds_of(sizes: Sizes, rates: Rates, sample: Sample) -> dict[Phase, float]:
    return {phase: activity.seconds for phase, activity in phase_times(sizes, rates, sample).items()}


def everything(sizes: Sizes) -> Sample:
    return representative(sizes, sizes.workload.gen_len)


def drawn(random: Random) -> Policy:
    """Weights and cache anywhere, activations on the GPU or not, blocks of 1 to 6 gpu batches."""
    splits = []
    for _ in range(2):
        gpu = random.randint(0, 10)
        cpu = random.randint(0, 10 - gpu)
        splits.append(Split(gpu=gpu / 10, cpu=cpu / 10, disk=(10 - gpu - cpu) / 10))
    return policy_of(
        *splits,
        random.choice((ON_CPU, ON_GPU)),
        size=random.randint(4, 12),
        batches=random.randint(1, 6),
        weight_bits=random.choice((4, 16)),
        cpu_attention=random.choice((0.0, 0.5, 1.0)),
    )


def test_a_few_layers_and_tokens_take_as_long_as_all() -> None:
    """Nine policies in ten are within 1.5%, and none is off by more than 10%; with more visits all are within 1.5%.

    The host is early for the first pass of decode by as much with few layers as with all.
    """
    random, short, long = Random(1), [], []
    for _ in range(20):
        sizes, rates = sizes_of(drawn(random))
        whole = seconds_of(sizes, rates, everything(sizes))
        for visits, errors in ((300, short), (1000, long)):
            found = seconds_of(sizes, rates, thinned(sizes, visits))
            errors += [abs(found[phase] / whole[phase] - 1) for phase in PHASES]
    short.sort()
    assert short[len(short) * 9 // 10] < 0.015
    assert short[-1] < 0.1
    assert max(long) < 0.015


def test_layers_with_windows_and_without_are_both_in_the_sample() -> None:
    """Two layers in three load a tenth of what the third does: few layers give the time of all."""
    types = ["full_attention", "sliding_attention", "sliding_attention"] * 14
    model = small_gemma2(64, NUM_LAYERS, layer_types=types[:NUM_LAYERS])
    problem = problem_of(model, load_profile("t4-host"), prompt_len=600, gen_len=13)
    policy = policy_of(ON_GPU, ON_CPU, ON_GPU, size=8, batches=4)
    sizes = Sizes(problem.model, problem.workload, policy, problem.place(policy)[0], "gpu")
    sample = thinned(sizes, 300)
    assert len(sample.layers) < NUM_LAYERS
    whole = seconds_of(sizes, problem.rates, everything(sizes))
    assert seconds_of(sizes, problem.rates, sample) == pytest.approx(whole, rel=0.02)


def test_alike_layers_are_extrapolated_exactly() -> None:
    """Where a steady state is reached, any number of layers follows from a few."""
    sizes, rates = sizes_of(policy_of(size=8, batches=8))
    tokens = everything(sizes)
    thin = thinned(sizes, 1)
    few = replace(thin, tokens=tokens.tokens, weights=tokens.weights)
    assert len(few.layers) < NUM_LAYERS / 2
    assert seconds_of(sizes, rates, few) == pytest.approx(seconds_of(sizes, rates, tokens), rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(gen_len=st.integers(1, 200), visits=st.integers(1, 5000), prompt_len=st.sampled_from((2, 600)))
def test_every_pass_and_every_layer_is_counted_once(gen_len: int, visits: int, prompt_len: int) -> None:
    """Weights add up to the passes, and the layers played to all layers."""
    sizes, _ = sizes_of(policy_of(size=4, batches=2), prompt_len=prompt_len, gen_len=gen_len)
    for sample in (thinned(sizes, visits), representative(sizes, 4), representative(sizes)):
        first, stop = sample.window
        assert sum(sample.weights) == pytest.approx(gen_len)
        assert sample.weights[0] == 1
        assert len(sample.layers) + (sample.times - 1) * (stop - first) == pytest.approx(NUM_LAYERS)
        assert list(sample.layers) == sorted(set(sample.layers))
        assert list(sample.tokens) == sorted(set(sample.tokens))


def test_in_short_is_the_same_time() -> None:
    """The times alone are those of the whole simulation, windows counted in both."""
    sizes, rates = sizes_of(policy_of(Split(gpu=0.3, cpu=0.5, disk=0.2), size=8, batches=3))
    sample = thinned(sizes, 150)
    assert not sample.is_whole
    full = simulate(sizes, rates, sample)
    short = seconds_of(sizes, rates, sample)
    assert short == pytest.approx({phase: activity.seconds for phase, activity in full.phases.items()})

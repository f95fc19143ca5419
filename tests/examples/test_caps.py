"""The demo's caps make the best plan use all three tiers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from caps import LEAST, MB, tight_caps
from demo import GEN_LEN, NUM_PROMPTS, PROMPT_LEN
from tiny_model import Settings

from hwprofiles.errors import UserError
from hwprofiles.points import Link, Rate, SizePoint
from hwprofiles.profile import Gpu, HardwareProfile, load_profile
from planner.model import ModelSpec, spec_from_config
from planner.problem import make_problem
from planner.request import Request
from planner.search import search
from planner.workload import Workload


def emulated() -> HardwareProfile:
    """The shipped two-core machine with a gpu tier in its host memory."""
    profile = load_profile("two-core")
    copies = tuple(SizePoint(size_bytes=size, bytes_per_s=Rate(median=8e9)) for size in (65536, 2**20))
    link = Link(
        h2d_pinned=copies,
        d2h_pinned=copies,
        h2d_pageable=copies,
        d2h_pageable=copies,
        both_bytes_per_s=Rate(median=1e10),
    )
    gpu = Gpu(
        name="emulated",
        emulated=True,
        memory_bytes=64 * 2**20,
        memory_bytes_per_s=profile.host.memory_bytes_per_s,
        gemm=profile.host.gemm,
        launch_overhead_s=Rate(median=1e-5),
        context_bytes=0,
        link=link,
    )
    return replace(profile, gpus=(gpu,))


def demo_model(num_layers: int = Settings().num_layers) -> ModelSpec:
    """The shape of the demo's model."""
    settings = Settings()
    config = {
        "model_type": "opt",
        "hidden_size": settings.hidden_size,
        "word_embed_proj_dim": settings.hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": settings.num_heads,
        "ffn_dim": settings.ffn_dim,
        "vocab_size": settings.vocab_size,
        "max_position_embeddings": settings.context,
        "dtype": "float32",
    }
    return spec_from_config("model", config)


WORKLOAD = Workload(prompt_len=PROMPT_LEN, gen_len=GEN_LEN, num_prompts=NUM_PROMPTS)


def with_disk_rate(profile: HardwareProfile, ratio: float) -> HardwareProfile:
    """The same machine with a disk of another speed."""
    assert profile.disk is not None
    read, write = (
        tuple(replace(point, bytes_per_s=Rate(median=point.bytes_per_s.median * ratio)) for point in points)
        for points in (profile.disk.read, profile.disk.write)
    )
    both = Rate(median=read[0].bytes_per_s.median / 2)
    disk = replace(
        profile.disk, read=read, write=write, both_read_bytes_per_s=both, both_write_bytes_per_s=both
    )
    return replace(profile, disk=disk)


@pytest.mark.parametrize("disk_rate", [0.03, 1.0, 4.0])
def test_the_best_plan_under_the_caps_holds_weights_on_every_tier(disk_rate: float) -> None:
    """On a slow disk as on a fast one, and the plan keeps to the caps."""
    profile, model = with_disk_rate(emulated(), disk_rate), demo_model()
    tight = tight_caps(model, WORKLOAD, profile)
    problem = make_problem(model, WORKLOAD, profile, tight.caps())
    plan = search(problem, Request())
    assert plan is not None
    assert all(share >= LEAST for _, share in plan.placement.weights.items())
    plan.ledger.check(problem.target)
    assert plan.ledger.peak_bytes("cpu") <= tight.cpu_mb * MB


def test_a_model_of_few_layers_is_refused() -> None:
    """Two layers fill the slots and leave nothing for the disk."""
    with pytest.raises(UserError, match="more layers"):
        tight_caps(demo_model(num_layers=2), WORKLOAD, emulated())

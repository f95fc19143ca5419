"""A frontier as a file, by its suffix: a page to hover, a picture, or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.files import check_writable, write_atomically
from hwprofiles.yaml_io import to_plain
from planner.frontier import Point
from planner.plan import Phase
from planner.policy import TIERS, Policy, Split, Tier
from planner.workload import Workload

SUFFIXES = (".html", ".png", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFacts:
    """A point of the JSON form."""

    latency_s: float
    tokens_per_s: float
    prefill_s: float
    decode_s: float
    is_efficient: bool
    is_chosen: bool
    policy: Policy
    realised: Mapping[str, Split]
    memory_bytes: Mapping[Tier, int]
    binding: Mapping[Phase, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierFacts:
    """The JSON form; its keys are in docs/plan.md."""

    model: str
    hardware: str
    workload: Workload
    points: tuple[PointFacts, ...]


def check_path(path: Path) -> None:
    """A UserError where `write` would fail, before anything is searched."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--frontier {path}: the suffix {path.suffix!r} is not known; name a file that ends in "
            f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    check_writable(path)


def write(path: Path, points: Sequence[Point]) -> None:
    """Write the frontier in the form that the path's suffix asks for."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        write_atomically(path, json.dumps(to_plain(_all_facts(points)), indent=1) + "\n")
    elif suffix == ".png":
        from planner.frontier_plot import to_png  # noqa: PLC0415  matplotlib, which takes long to import

        write_atomically(path, to_png(points))
    else:
        from planner.frontier_page import to_html  # noqa: PLC0415

        write_atomically(path, to_html(points))


def _all_facts(points: Sequence[Point]) -> FrontierFacts:
    plan = points[0].plan
    return FrontierFacts(
        model=plan.model.name,
        hardware=plan.hardware.name,
        workload=plan.workload,
        points=tuple(_facts(point) for point in points),
    )


def _facts(point: Point) -> PointFacts:
    plan, prediction = point.plan, point.plan.prediction
    return PointFacts(
        latency_s=point.latency_s,
        tokens_per_s=point.tokens_per_s,
        prefill_s=prediction.prefill.seconds,
        decode_s=prediction.decode.seconds,
        is_efficient=point.is_efficient,
        is_chosen=point.is_chosen,
        policy=plan.policy,
        realised={
            "weights": plan.placement.weights,
            "cache": plan.placement.cache,
            "activations": plan.placement.activations,
        },
        memory_bytes={tier: plan.ledger.peak_bytes(tier) for tier in TIERS},
        binding={"prefill": prediction.prefill.binding, "decode": prediction.decode.binding},
    )

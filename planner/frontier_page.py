"""A frontier as one self-contained page: the drawing, what a point's plan is on hovering it, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from hwprofiles.units import format_bytes, format_seconds
from planner.frontier import Point
from planner.frontier_plot import gid, to_svg
from planner.plan import Plan
from planner.policy import TIERS

_TEMPLATE = Path(__file__).with_name("frontier.html")
_INTRODUCTION = (
    "Each point is a plan: how long one block takes, prefill and decode, and how many tokens a second it generates. "
    "Of the plans on the line none has another one that is both quicker and faster. Hover a point, or a row below."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    gid: str
    kind: str
    facts: Mapping[str, str]


def to_html(points: Sequence[Point]) -> str:
    """The page's text; it loads nothing from anywhere."""
    plan = points[0].plan
    lengths = f"prompt {plan.workload.prompt_len}, gen {plan.workload.gen_len}"
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text())
    return template.render(
        title=f"Throughput and latency: {plan.model.name} on {plan.hardware.name}, {lengths}",
        introduction=_INTRODUCTION,
        drawing=Markup(to_svg(points)),  # matplotlib has escaped what it was given
        rows=[
            _Row(gid=gid(index), kind=_kind(point), facts=_facts(point)) for index, point in enumerate(points)
        ],
    )


def _kind(point: Point) -> str:
    return "chosen" if point.is_chosen else "efficient" if point.is_efficient else "other"


def _facts(point: Point) -> dict[str, str]:
    """What a person asks of a point, by name, in order."""
    plan, prediction, policy = point.plan, point.plan.prediction, point.plan.policy
    return {
        "latency of a block": format_seconds(point.latency_s),
        "tokens/s": f"{point.tokens_per_s:,.4g}",
        "prefill": format_seconds(prediction.prefill.seconds),
        "decode": format_seconds(prediction.decode.seconds),
        "gpu batch x batches = block": f"{policy.gpu_batch_size} x {policy.num_gpu_batches} = {policy.block_size}",
        "bits of weights / cache": f"{policy.weight_bits} / {policy.kv_bits}",
        "weights % gpu / cpu / disk": _percents(plan, "weights"),
        "cache % gpu / cpu / disk": _percents(plan, "cache"),
        "activations % gpu / cpu / disk": _percents(plan, "activations"),
        "attended on the CPU": f"{100 * policy.cpu_attention:.0f}%",
        "memory gpu / cpu / disk": " / ".join(format_bytes(plan.ledger.peak_bytes(tier)) for tier in TIERS),
        "prefill / decode bound by": f"{prediction.prefill.binding} / {prediction.decode.binding}",
    }


def _percents(plan: Plan, name: str) -> str:
    """The realised split."""
    splits = {
        "weights": plan.placement.weights,
        "cache": plan.placement.cache,
        "activations": plan.placement.activations,
    }
    return " / ".join(f"{100 * share:.0f}" for _, share in splits[name].items())

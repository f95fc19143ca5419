"""Render stages: the ranks of a pipeline as a table, and what other numbers of them would bring."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from hwprofiles.units import format_bytes, format_seconds
from planner.plan import PHASES, Plan, Stage
from planner.policy import TIERS, Split


def stages_table(plan: Plan) -> Table:
    """Where each rank runs, what it holds and how long it takes by itself."""
    policy = plan.policy
    how = "from GPU to GPU" if policy.comm_device == "cuda" else "through host memory"
    title = f"{len(plan.stages)} stages, {policy.num_waves} waves in the pipe, hidden states pass {how}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("rank")
    for name in ("on", "layers", "threads", "weights", "cache", "peak", "prefill", "decode", "at work"):
        table.add_column(name, justify="right", no_wrap=name != "peak")
    for rank, stage in enumerate(plan.stages):
        table.add_row(str(rank), *_cells(plan, stage))
    return table


def _cells(plan: Plan, stage: Stage) -> tuple[str, ...]:
    first, stop = stage.layers
    place = f"host {stage.host}" + (f" gpu {stage.gpu}" if stage.gpu is not None else "")
    peaks = [
        f"{tier} {format_bytes(stage.ledger.peak_bytes(tier))}"
        for tier in TIERS
        if stage.ledger.peak_bytes(tier)
    ]
    own_s, all_s = (
        sum(found.of(phase).seconds for phase in PHASES) for found in (stage.prediction, plan.prediction)
    )
    return (
        place,
        f"{first} to {stop - 1}",
        str(stage.threads),
        _percents(stage.placement.weights),
        _percents(stage.placement.cache),
        ", ".join(peaks),
        *(format_seconds(stage.prediction.of(phase).seconds) for phase in PHASES),
        f"{100 * own_s / all_s:.0f}%",
    )


def _percents(split: Split) -> str:
    return " / ".join(f"{100 * share:.0f}" for _, share in split.items())


def stages_note(plans: Mapping[int, Plan], best: Plan) -> str:
    """Throughput by number of stages, and what binds where more of them do not help."""
    base = next(iter(plans.values())).throughput_tokens_per_s
    rates = ", ".join(
        f"{count}: {plan.throughput_tokens_per_s:,.2f} ({plan.throughput_tokens_per_s / base:.2f}x)"
        for count, plan in plans.items()
    )
    note = f"Tokens/s by number of stages: {rates}"
    more = [plan for count, plan in plans.items() if count > best.num_ranks]
    if more:
        bound = more[0].prediction.decode.binding
        note += f". More than {best.num_ranks} do not bring 0.5%: {bound} binds, which they share"
    return note

"""Render: a plan as tables a person reads."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from hwprofiles.units import format_bytes, format_seconds
from planner.plan import PHASES, PhasePrediction, Plan, Range
from planner.policy import TIERS, Bits, Split
from planner.render_stages import stages_table


def plan_view(plan: Plan, *notes: str) -> RenderableType:
    """Policy, splits, memory and prediction, then one line of throughput and the notes."""
    return Group(
        _policy_table(plan),
        *([stages_table(plan)] if plan.stages else []),
        _memory_table(plan),
        _prediction_table(plan),
        *_throughput(plan),
        *notes,
    )


def _throughput(plan: Plan) -> Iterator[str]:
    """The point, its interval, and what the interval stands for."""
    prediction, phases = plan.prediction, "over prefill and decode"
    phases += " of the longest block" * bool(plan.workload.lengths)
    rate, interval = f"{prediction.throughput_tokens_per_s:,.2f} generated tokens/s", prediction.interval
    if interval is None or not interval.throughput_tokens_per_s.width:
        yield f"[bold]Throughput {rate}[/bold] {phases}"
        if interval:
            yield "No range: the profile's figures have no spread"
        return
    yield f"[bold]Throughput {rate}, {_ends(interval.throughput_tokens_per_s)}[/bold], {phases}"
    if interval.error is None:
        source = (
            "the spread of the profile's rates; the model's own error is not in them: see planner calibrate"
        )
    else:
        source = (
            f"the spread of the profile's rates and the calibration's error of {100 * interval.error:.1f}%"
        )
    yield f"Ranges are of 90%, from {source}"


def _ends(found: Range) -> str:
    return f"{found.low:,.2f} to {found.high:,.2f}"


def make_table(title: str, *columns: str) -> Table:
    """A table whose first column names and whose others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=column != "busy")
    return table


def _policy_table(plan: Plan) -> Table:
    policy, placement = plan.policy, plan.placement
    title = f"{plan.model.name} ({plan.model.dtype}) on {plan.hardware.name}: {describe_policy(plan)}"
    table = make_table(title, "percent on gpu / cpu / disk", "requested", "realised")
    for name, requested, realised in (
        (f"weights, {_bits(policy.weight_bits, plan)}", policy.weights, placement.weights),
        (f"cache, {_bits(policy.kv_bits, plan)}", policy.cache, placement.cache),
        ("activations", policy.activations, placement.activations),
    ):
        table.add_row(name, _percents(requested), _percents(realised))
    return table


def _bits(bits: Bits, plan: Plan) -> str:
    return "4 bit" if bits == 4 else plan.model.dtype


def describe_policy(plan: Plan) -> str:
    """The batch sizes and where attention runs, in a line."""
    policy = plan.policy
    attention = f", {100 * policy.cpu_attention:.0f}% of the rows off the GPU attended on the CPU" * (
        policy.cpu_attention > 0
    )
    return (
        f"gpu batch {policy.gpu_batch_size} x {policy.num_gpu_batches} = block of {policy.block_size}, "
        f"{_lengths(plan)}{attention}"
    )


def _lengths(plan: Plan) -> str:
    up_to = "up to " * bool(plan.workload.lengths)
    return f"prompt {up_to}{plan.workload.prompt_len}, gen {up_to}{plan.workload.gen_len}"


def _percents(split: Split) -> str:
    return " / ".join(f"{100 * share:.1f}" for _, share in split.items())


def _memory_table(plan: Plan) -> Table:
    tiers = [tier for tier in TIERS if plan.ledger.peak_bytes(tier) or plan.hardware.limit_bytes(tier)]
    table = make_table("Memory", "purpose", *tiers)
    for purpose in dict.fromkeys(entry.purpose for entry in plan.ledger.entries):
        held = [plan.ledger.bytes_of(tier, purpose) for tier in tiers]
        table.add_row(purpose, *(format_bytes(nbytes) if nbytes else "" for nbytes in held))
    table.add_section()
    table.add_row("peak", *(format_bytes(plan.ledger.peak_bytes(tier)) for tier in tiers), style="bold")
    table.add_row("limit", *(format_bytes(plan.hardware.limit_bytes(tier)) for tier in tiers))
    if plan.hardware.headroom_bytes:
        left = {"cpu": format_bytes(plan.hardware.headroom_bytes)}
        table.add_row("headroom beyond it", *(left.get(tier, "") for tier in tiers))
    return table


def _prediction_table(plan: Plan) -> Table:
    prediction, block = plan.prediction, plan.policy.block_size
    tokens = {"prefill": block * plan.workload.prompt_len, "decode": block * (plan.workload.gen_len - 1)}
    interval = prediction.interval
    ranges = (interval.prefill_s, interval.decode_s) if interval else (None, None)
    longest = " of the longest prompts and answers" * bool(plan.workload.lengths)
    table = make_table(f"Predicted for one block{longest}", "phase", "time", "tokens/s", "bound by", "busy")
    for phase, predicted, found in zip(PHASES, (prediction.prefill, prediction.decode), ranges, strict=True):
        if not predicted.seconds:
            table.add_row(phase, "not run", "", "", "")
            continue
        table.add_row(
            phase,
            format_seconds(predicted.seconds) + _deviations(predicted.seconds, found),
            f"{tokens[phase] / predicted.seconds:,.2f}",
            predicted.binding,
            busy_shares(predicted),
        )
    return table


def _deviations(seconds: float, found: Range | None) -> str:
    """How much less and how much more it may be; nothing where that is not known."""
    if found is None or not found.width:
        return ""
    return f", {100 * (found.low / seconds - 1):+.0f} to {100 * (found.high / seconds - 1):+.0f}%"


def busy_shares(predicted: PhasePrediction) -> str:
    """How much of the phase each resource is at work."""
    busy = ((seconds / predicted.seconds, resource) for resource, seconds in predicted.busy_s.items())
    shares = sorted(busy, reverse=True)
    return ", ".join(f"{resource} {100 * share:.0f}%" for share, resource in shares)


def four_bit_note(plan: Plan, four_bit: Plan | None) -> str:
    """What 4-bit weights and cache would bring beside a lossless plan."""
    if four_bit is None:
        return "4-bit weights and cache: no plan fits"
    rate = four_bit.throughput_tokens_per_s
    ratio = rate / plan.throughput_tokens_per_s
    return f"With --weight-bits 4 --kv-bits 4 (lossy): {rate:,.2f} tokens/s, {ratio:.2f} times as many"

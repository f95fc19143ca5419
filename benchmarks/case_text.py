"""A case's section of docs/performance.md: how it was run, its phases and their gaps, every run of the peers."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.confine import Ran
from benchmarks.facts import SHARED_PACKAGES
from benchmarks.figures import Figures, Gap, figures_of
from benchmarks.peers.base import PeerFigures
from benchmarks.result import OurFigures, PeerRuns, Result
from hwprofiles.units import format_bytes, format_seconds

_SMALL = 0.005
"""Of a phase's time, a share that is not worth a word."""


def case_section(result: Result) -> str:
    """The section of one result, in Markdown."""
    parts = [f"## {_title(result)}", _origin(result)]
    figures = figures_of(result.report) if result.report else None
    if figures is None:
        return "\n\n".join([*parts, f"Failed: {result.error or 'no phase was run'}"])
    parts += ["\n".join(f"* {gap_text(gap)}" for gap in figures.gaps), _memory(figures)]
    if result.runs:
        parts.append(_our_runs(result))
    parts += [_peer_runs(peer, figures) for peer in result.peers]
    return "\n\n".join(parts)


def gap_text(gap: Gap) -> str:
    """A phase's time, its bound, and what fills the gap between them."""
    text = (
        f"**{gap.phase}** took {format_seconds(gap.measured_s)}; at the profile's rates {gap.bound_by} needs "
        f"{format_seconds(gap.bound_s)}, {gap.bound_s / gap.measured_s:.0%} of that."
    )
    slower_s = gap.busy_s - gap.planned_s
    word = "longer" if slower_s >= 0 else "shorter"
    text += (
        f" {gap.binding} was at work {format_seconds(gap.busy_s)}, {format_seconds(abs(slower_s))} {word} than "
        f"the {format_seconds(gap.planned_s)} it needs at those rates"
    )
    if gap.idle_s < _SMALL * gap.measured_s:
        return f"{text}, and never idle for long."
    waits = sorted(gap.waits_s.items(), key=lambda wait: -wait[1])
    named = [f"{cause} {format_seconds(s)}" for cause, s in waits if s >= _SMALL * gap.measured_s]
    reasons = f", waiting for {', '.join(named)}" if named else ""
    return f"{text}, and idle {format_seconds(gap.idle_s)}{reasons}."


def _title(result: Result) -> str:
    return " beside ".join([result.case, *(peer.name for peer in result.peers)])


def _origin(result: Result) -> str:
    machine, profile = result.machine, result.profile or {}
    found, cores = machine.get("gpus"), machine.get("cores", "?")
    gpus = found if isinstance(found, list) else []
    few = _of_host(machine, "gpus", len(gpus))
    where = (f"{len(gpus)}{few} GPUs: " if few else "") + "; ".join(map(str, gpus)) if gpus else "no GPU"
    lines = [
        f"{result.created}, commit {result.commit[:12]}, {machine.get('processor', machine['platform'])} "
        f"({cores}{_of_host(machine, 'cores', cores)} cores), {where}; torch {machine['torch']}, "
        f"transformers {machine['transformers']}"
    ]
    if profile:
        lines.append(f"Profile {profile['name']} of {profile['created']}, digest {profile['digest']}")
    commands = "\n".join(f"    {command}" for command in result.commands)
    return ".\n".join(lines) + f".\n\n{commands}"


def _of_host(machine: Mapping[str, object], name: str, count: object) -> str:
    """Of how many, where runs had only a part of the host."""
    whole = machine.get(f"host_{name}", count)
    return "" if whole == count else f" of {whole}"


def _memory(figures: Figures) -> str:
    rows = [
        f"* {tier.tier}: ledger {format_bytes(tier.ledger_bytes)}, measured {format_bytes(tier.measured_bytes)} "
        f"({tier.share:.1%})"
        for tier in figures.tiers
        if tier.measured_bytes and tier.share
    ]
    return "\n".join(["Memory at its peak:", "", *rows])


def _our_runs(result: Result) -> str:
    head = "| our run | prefill | decode | tok/s | peak memory | others' load |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(_our_row(index, run) for index, run in enumerate(result.runs, 1))])


def _our_row(index: int, run: OurFigures) -> str:
    if run.error or run.prefill_s is None or run.decode_s is None:
        return f"| {index} | failed: {_one_line(run.error)} | | | {_peak(run.ran)} | {_load(run.ran)} |"
    return (
        f"| {index} | {format_seconds(run.prefill_s)} | {format_seconds(run.decode_s)} | "
        f"{run.throughput_tokens_per_s or 0:.2f} | {_peak(run.ran)} | {_load(run.ran)} |"
    )


def _peer_runs(peer: PeerRuns, figures: Figures) -> str:
    lines = [f"{_named(peer)}: {peer.how}.", ""]
    lines += ["| setting | prefill | decode | tok/s | times | peak memory | others' load |", f"|{'---|' * 7}"]
    for run in peer.runs:
        setting = _setting(run.setting)
        if run.figures is None or not run.throughput_tokens_per_s:
            lines.append(
                f"| {setting} | {_one_line(run.error)} | | | | {_peak(run.ran)} | {_load(run.ran)} |"
            )
            continue
        lines.append(
            f"| {setting} | {format_seconds(run.figures.prefill_s)} | {format_seconds(run.figures.decode_s)} | "
            f"{run.throughput_tokens_per_s:.2f} | {figures.throughput / run.throughput_tokens_per_s:.1f} | "
            f"{_gpu_peak(run.figures)}{_peak(run.ran)} | {_load(run.ran)} |"
        )
    return "\n".join(lines)


def _named(peer: PeerRuns) -> str:
    """The peer, with the versions of its own that a run told."""
    told = next((run.figures.versions for run in peer.runs if run.figures), {})
    own = ", ".join(f"{name} {version}" for name, version in told.items() if name not in SHARED_PACKAGES)
    return f"{peer.name} ({own})" if own else peer.name


def _gpu_peak(figures: PeerFigures) -> str:
    return f"{format_bytes(figures.peak_gpu_bytes)} GPU, " if figures.peak_gpu_bytes else ""


def _setting(setting: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def _peak(ran: Ran) -> str:
    """Resident memory; and what a control group counted, where there was one."""
    text = f"{format_bytes(ran.peak_resident_bytes)} resident"
    if ran.limit_bytes and ran.peak_charged_bytes:
        text += f", {format_bytes(ran.peak_charged_bytes)} of {format_bytes(ran.limit_bytes)} charged"
    return text


def _load(ran: Ran) -> str:
    stopped = f", stopped for {format_seconds(ran.stopped_s)}" if ran.stopped_s else ""
    return f"{ran.others_cores:.2f} cores, {ran.others_niced_cores:.2f} of them niced{stopped}"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())[-200:].replace("|", "/")

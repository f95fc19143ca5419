"""Render: an explanation as tables and sentences a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from hwprofiles.units import format_bytes
from planner.alternatives import Alternative
from planner.compare import Line
from planner.explain import NOTICED, Explanation, Reasons
from planner.holdings import Holding, Move, TierView
from planner.policy import Tier
from planner.relief import bound_sentence
from planner.render import make_table
from planner.what_if import Answer
from planner.why_not import WhyNot

_TITLES = {
    "placement": "placement, as whole tensors and rows",
    "memory": "memory, at its peak",
    "work": "work, for each generated token",
}


def explanation_view(found: Explanation) -> RenderableType:
    """What was asked for, each part under a title."""
    parts: list[Iterator[RenderableType]] = []
    if found.reasons:
        parts.append(_reasons(found.reasons))
    if found.what_ifs:
        parts.append(_what_ifs(found.what_ifs))
    if found.why_not:
        parts.append(_why_not(found.why_not))
    if found.diff is not None:
        parts.append(_diff(found.diff))
    return Group(*(piece for index, part in enumerate(parts) for piece in chain([""] * (index > 0), part)))


def _reasons(found: Reasons) -> Iterator[RenderableType]:
    yield "[bold]What binds[/bold]"
    yield from map(bound_sentence, found.phases)
    yield "\n[bold]What each tier holds, and why[/bold]"
    for view in found.tiers:
        yield tier_sentence(view, binds=view.tier in found.binding_limits)
        yield from (_indented(holding_sentence(holding)) for holding in view.holdings)
    yield "\n[bold]Why not a larger block, or attention elsewhere[/bold]"
    yield from (_indented(alternative_sentence(other)) for other in found.alternatives)


def _indented(text: str) -> RenderableType:
    return Padding(text, (0, 0, 0, 2))


def tier_sentence(view: TierView, *, binds: bool) -> str:
    """How full a tier is, and whether more of it is wanted."""
    if not view.peak_bytes:
        return f"{view.tier}: nothing, of {format_bytes(view.limit_bytes)}."
    work = f", {format_bytes(view.other_bytes)} of it to work with" if view.other_bytes else ""
    wanted = "its limit binds: what would be faster has no room here" if binds else "its limit does not bind"
    return (
        f"{view.tier}: {format_bytes(view.peak_bytes)} of {format_bytes(view.limit_bytes)}{work}; {wanted}."
    )


def holding_sentence(holding: Holding) -> str:
    """What it would cost or save to hold some of it elsewhere."""
    held = f"{holding.kind} {100 * holding.share:.1f}%, {format_bytes(holding.num_bytes)}"
    if not holding.moves:
        return f"{held}: there is no other tier."
    effects = [f"with {_some(holding, move)} on {move.to} {_effect(move)}" for move in holding.moves]
    return f"{held}. A block would take: {'; '.join(effects)}."


def _some(holding: Holding, move: Move) -> str:
    return "all of it" if move.num_bytes == holding.num_bytes else f"{format_bytes(move.num_bytes)} of it"


def _effect(move: Move) -> str:
    if move.slower > NOTICED:
        return f"{100 * move.slower:.2f}% longer"
    if move.slower >= -NOTICED:
        return "as long"
    return f"{-100 * move.slower:.2f}% less, {_room({move.to: move.lacking_bytes})}"


def _room(lacking_bytes: Mapping[Tier, int]) -> str:
    short = [f"{tier} lacks {format_bytes(nbytes)}" for tier, nbytes in lacking_bytes.items() if nbytes]
    return f"but {' and '.join(short)}" if short else "and there is room for it"


def alternative_sentence(other: Alternative) -> str:
    """What a change of the policy would bring, and what it lacks."""
    if other.gain > NOTICED:
        return f"{other.what}: {100 * other.gain:.1f}% faster, {_room(other.lacking_bytes)}."
    if other.gain >= -NOTICED:
        return f"{other.what}: as fast."
    return f"{other.what}: {-100 * other.gain:.1f}% slower."


def _what_ifs(answers: Sequence[Answer]) -> Iterator[RenderableType]:
    table = make_table(
        "What if, each by a new search",
        "change",
        "tokens/s",
        "gain",
        "binds prefill, decode",
        "the plan then",
    )
    for column in table.columns[-2:]:
        column.no_wrap = False
    table.columns[-1].justify = "left"
    for answer in answers:
        table.add_row(answer.change or "as it is", *_figures(answer), _then(answer))
    yield table
    if any(answer.is_bound for answer in answers):
        yield (
            "at most: as if the GPUs were one with the memory, the rates and the links of all. No division of the "
            "layers among them can be faster by this model; it is priced itself once plans have stages."
        )


def _figures(answer: Answer) -> tuple[str, str, str]:
    if answer.tokens_per_s is None:
        return "none", "", ""
    at_most = "at most " if answer.is_bound else ""
    gain = "" if answer.gain is None else f"{at_most}{100 * answer.gain:+.1f}%"
    return f"{at_most}{answer.tokens_per_s:,.2f}", gain, ", ".join(answer.binding.values())


def _then(answer: Answer) -> str:
    return answer.failure or "; ".join(answer.differs) or "the same policy"


def _why_not(found: WhyNot) -> Iterator[RenderableType]:
    yield _lines_table("The plan beside the policy asked about", found.lines, "the plan", "asked about")
    yield f"[bold]{found.verdict}[/bold]"


def _diff(lines: Sequence[Line]) -> Iterator[RenderableType]:
    if not lines:
        yield "The plans are the same."
        return
    yield _lines_table("What differs between the plans", lines, "this plan", "the other")


def _lines_table(title: str, lines: Sequence[Line], left: str, right: str) -> Table:
    """Section by section; a line that differs is bold."""
    table = make_table(title, "", left, right)
    section = ""
    for line in lines:
        if line.section != section:
            section = line.section
            table.add_section()
            table.add_row(_TITLES.get(section, section), style="italic")
        table.add_row(f"  {line.name}", *line.texts, style="bold" if line.differs else None)
    return table

"""Compare: two plans side by side, line by line, what differs told from what does not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hwprofiles.units import format_bytes, format_seconds
from hwprofiles.yaml_io import to_plain
from planner.plan import PHASES, Plan
from planner.policy import TIERS

Value = str | int | float | None
Form = Literal["plain", "bytes", "seconds", "percent", "rate"]
Section = Literal[
    "plan", "model", "workload", "hardware", "request", "policy", "placement", "memory", "prediction", "work"
]
"""In the order in which they are shown; `work` is by kind of task, in seconds for each generated token."""
_DECIDED: tuple[Section, ...] = ("policy", "placement", "memory", "prediction", "work")
"""What a policy decides and leads to; the others say what it was sought for."""
_LONGEST = 60
"""Characters of a list that is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure of two plans; None: this plan has no such figure."""

    section: Section
    name: str
    form: Form
    left: Value
    right: Value

    @property
    def texts(self) -> tuple[str, str]:
        """Both as a person reads them."""
        return format_value(self.left, self.form), format_value(self.right, self.form)

    @property
    def differs(self) -> bool:
        """As far as a person reads them."""
        left, right = self.texts
        return left != right


@dataclass(frozen=True, slots=True)
class _Fact:
    section: Section
    name: str
    value: Value
    form: Form = "plain"


def decided_lines(left: Plan, right: Plan) -> tuple[Line, ...]:
    """All that two policies for the same problem decide and lead to."""
    return tuple(line for line in _lines(left, right) if line.section in _DECIDED)


def differing_lines(left: Plan, right: Plan) -> tuple[Line, ...]:
    """Only what differs, in any part of two plans."""
    return tuple(line for line in _lines(left, right) if line.differs)


def format_value(value: Value, form: Form) -> str:
    """A figure as text; nothing for one that is not there."""
    if value is None:
        return ""
    if isinstance(value, str) or form == "plain":
        return str(value)
    if form == "percent":
        return f"{100 * value:.1f}%"
    if form == "rate":
        return f"{value:,.2f}"
    return format_bytes(value) if form == "bytes" else format_seconds(value)


def _lines(left: Plan, right: Plan) -> list[Line]:
    """Every figure of either plan, section by section."""
    ours, theirs = ({(fact.section, fact.name): fact for fact in _facts(plan)} for plan in (left, right))
    lines = [
        Line(
            section=section,
            name=name,
            form=fact.form,
            left=ours[section, name].value if (section, name) in ours else None,
            right=theirs[section, name].value if (section, name) in theirs else None,
        )
        for (section, name), fact in {**ours, **theirs}.items()
    ]
    return sorted([*lines, *_rearranged(left, right)], key=_position)


def _position(line: Line) -> tuple[int, int]:
    """Section by section, memory tier by tier."""
    tier = next((index for index, tier in enumerate(TIERS) if line.name.startswith(f"{tier} ")), 0)
    return get_args(Section).index(line.section), tier if line.section == "memory" else 0


def _facts(plan: Plan) -> Iterator[_Fact]:
    yield _Fact("plan", "digest", plan.digest())
    yield from _flat("model", to_plain(plan.model))
    yield from _flat("workload", to_plain(plan.workload))
    yield from _flat("hardware", to_plain(plan.hardware))
    if plan.request:
        yield from _flat("request", to_plain(plan.request))
    yield from _flat("policy", to_plain(plan.policy))
    for kind, split in (
        ("weights", plan.placement.weights),
        ("cache", plan.placement.cache),
        ("activations", plan.placement.activations),
    ):
        yield from _flat("placement", to_plain(split), f"{kind}.")
    yield from _memory(plan)
    yield from _prediction(plan)


def _flat(section: Section, data: object, prefix: str = "") -> Iterator[_Fact]:
    """A fact for each leaf, named by its path; a tier's share of something is named by both."""
    if not isinstance(data, Mapping):
        data = {"": data}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(section, value, f"{name}.")
        elif key in TIERS and isinstance(value, float | int):
            yield _Fact(section, f"{prefix.rstrip('.')} on {key}", value, "percent")
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            yield _Fact(section, name, value, _form(name))
        else:
            yield _Fact(section, name, _short(value))


def _short(value: object) -> str:
    """None, a truth value, or a list, of which a long one is told from another by a hash."""
    text = "none" if value is None else str(value)
    if len(text) <= _LONGEST or not isinstance(value, Sequence):
        return text
    return f"{len(value)} entries, hash {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _form(name: str) -> Form:
    """The unit that a key's name gives."""
    if name == "cpu_attention":
        return "percent"
    if name.endswith("tokens_per_s"):
        return "rate"
    return "bytes" if name.endswith("_bytes") else "seconds" if name.endswith("_s") else "plain"


def _memory(plan: Plan) -> Iterator[_Fact]:
    """Each tier's peak, its limit, by how much it is over, and what it is made of."""
    for tier in TIERS:
        peak, limit = plan.ledger.peak_bytes(tier), plan.hardware.limit_bytes(tier)
        if not (peak or limit):
            continue
        yield _Fact("memory", f"{tier} peak", peak, "bytes")
        yield _Fact("memory", f"{tier} limit", limit, "bytes")
        over = f"over by {format_bytes(peak - limit)}"
        yield _Fact("memory", f"{tier} room", over if peak > limit else f"{format_bytes(limit - peak)} free")
        for entry in plan.ledger.entries:
            if entry.tier == tier:
                nbytes = plan.ledger.bytes_of(tier, entry.purpose)
                yield _Fact("memory", f"{tier} {entry.purpose}", nbytes, "bytes")


def _prediction(plan: Plan) -> Iterator[_Fact]:
    prediction = plan.prediction
    if plan.job:
        yield from _flat("prediction", to_plain(plan.job), "job ")
    for phase in PHASES:
        yield _Fact("prediction", f"{phase} of one block", prediction.of(phase).seconds, "seconds")
        yield _Fact("prediction", f"{phase} bound by", prediction.of(phase).binding)
    yield _Fact("prediction", "generated tokens/s", prediction.throughput_tokens_per_s, "rate")
    tokens = plan.policy.block_size * plan.workload.gen_len
    for task in prediction.tasks:
        name = f"{task.phase} {task.kind} on {task.resource}"
        yield _Fact("work", name, task.seconds / tokens, "seconds")


def _rearranged(left: Plan, right: Plan) -> Iterator[Line]:
    """How many layers and gpu batches are placed otherwise, which the splits alone do not show."""
    for name, ours, theirs in (
        ("layers with tensors elsewhere", left.placement.weight_tiers, right.placement.weight_tiers),
        ("gpu batches with cache elsewhere", left.placement.cache_rows, right.placement.cache_rows),
        (
            "gpu batches with activations elsewhere",
            left.placement.activation_rows,
            right.placement.activation_rows,
        ),
    ):
        if len(ours) == len(theirs):
            moved = _num_unequal(ours, theirs)
            other = f"{moved} of {len(ours)}" if moved else None
            yield Line(section="placement", name=name, form="plain", left=None, right=other)


def _num_unequal(ours: Sequence[object], theirs: Sequence[object]) -> int:
    return sum(a != b for a, b in zip(ours, theirs, strict=True))

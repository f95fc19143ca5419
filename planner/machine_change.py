"""Machine change: a machine with more or less of one thing, as `--what-if` spells it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hwprofiles.errors import UserError
from hwprofiles.units import parse_bytes
from planner.machine import usable_bytes
from planner.policy import Tier
from planner.problem import Problem
from planner.rate_curve import Curve
from planner.rates import Rates

How = Literal["to", "by", "times"]
FORMS = (
    "write gpu-mem, cpu-mem or disk as =SIZE, =+SIZE, =-SIZE or =xN (cpu-mem=256GB, gpu-mem=+8GB, disk=x2); "
    "disk-rate, pcie, gpu-rate or cpu-rate as =xN (pcie=x2); gpus=N; join with commas what is to change together"
)
_TIERS: Mapping[str, Tier] = {"gpu-mem": "gpu", "cpu-mem": "cpu", "disk": "disk"}
_OF_GPU = ("gpu-mem", "pcie", "gpu-rate", "gpus")
_UNITS = (
    "gpu-mem=+8GB",
    "cpu-mem=+64GB",
    "disk=x2",
    "disk-rate=x2",
    "pcie=x2",
    "gpu-rate=x2",
    "cpu-rate=x2",
    "gpus=2",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that a machine is to have more or less of."""

    part: str
    how: How
    amount: float
    """Bytes, or a factor."""
    text: str
    """As the user wrote it."""

    @property
    def is_bound(self) -> bool:
        """Whether the changed machine is better than what is asked for, and its plan only an upper bound."""
        return self.part == "gpus"

    def apply(self, problem: Problem) -> Problem:
        """The problem on the changed machine; a UserError where the machine has no such part."""
        lack = _lacks(self, problem)
        if lack:
            raise UserError(f"--what-if {self.text}: {lack}")
        if self.part in _TIERS:
            return self._resized(problem, _TIERS[self.part])
        if self.part == "gpus":
            return _merged_gpus(problem, round(self.amount))
        return replace(problem, rates=_FASTER[self.part](problem.rates, self.amount), band=None)

    def _resized(self, problem: Problem, tier: Tier) -> Problem:
        now = problem.target.limit_bytes(tier)
        size = usable_bytes(problem.target, self.amount) if tier == "cpu" else round(self.amount)
        limit = {"to": size, "by": now + size, "times": round(now * self.amount)}[self.how]
        return problem.with_limit(tier, max(0, limit))


def parse_changes(text: str) -> tuple[Change, ...]:
    """The changes of one `--what-if`, to be made together; a UserError names the value and the valid forms."""
    return tuple(_parse(part.strip(), text) for part in text.split(","))


def unit_changes(problem: Problem) -> list[tuple[Change, ...]]:
    """A unit more of each thing that the machine has."""
    found = [_parse(unit, unit) for unit in _UNITS]
    return [(change,) for change in found if not _lacks(change, problem) and _grows(change, problem)]


def _grows(change: Change, problem: Problem) -> bool:
    """Whether there is something to multiply: a disk that the user granted nothing of stays empty."""
    return not change.part.startswith("disk") or problem.target.disk_bytes > 0


def _parse(text: str, whole: str) -> Change:
    part, _, value = text.partition("=")
    if part in _TIERS and value:
        if value[0] == "x":
            return Change(part=part, how="times", amount=_number(value[1:], whole), text=text)
        sign = {"+": 1, "-": -1}.get(value[0], 0)
        try:
            size = parse_bytes(value[1:] if sign else value)
        except UserError as error:
            raise UserError(f"--what-if {whole!r}: {error}; {FORMS}") from None
        return Change(part=part, how="by" if sign else "to", amount=size * (sign or 1), text=text)
    if part in _FASTER and value[:1] == "x":
        return Change(part=part, how="times", amount=_number(value[1:], whole), text=text)
    if part == "gpus" and value.isdecimal() and int(value) >= 1:
        return Change(part=part, how="to", amount=int(value), text=text)
    raise UserError(f"--what-if {whole!r} is not understood; {FORMS}")


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"--what-if {whole!r}: {text!r} is not a positive number; {FORMS}")
    return value


def _lacks(change: Change, problem: Problem) -> str | None:
    """Why this machine has no such part."""
    target = problem.target
    if change.part in _OF_GPU and target.compute_tier != "gpu":
        return f"profile {target.name} has no GPU whose rates could be taken; plan with one that has"
    if change.part in ("gpu-rate", "gpus") and target.emulated:
        return f"the GPU of profile {target.name} is emulated by the host's cores; ask for cpu-rate"
    if change.part.startswith("disk") and not problem.rates.has_disk:
        return f"profile {target.name} has no disk whose rates could be taken; measure one with --disk-dir"
    return None


def _faster(curve: Curve, factor: float) -> Curve:
    """More bandwidth: what a small copy takes beside its bytes stays as it is."""
    saved = (1 - 1 / factor) / curve.best
    return replace(curve, points=tuple((x, 1 / (1 / rate - saved)) for x, rate in curve.points))


def _faster_link(rates: Rates, factor: float) -> Rates:
    return replace(
        rates,
        h2d=_faster(rates.h2d, factor),
        d2h=_faster(rates.d2h, factor),
        both_bytes_per_s=rates.both_bytes_per_s * factor,
    )


def _faster_disk(rates: Rates, factor: float) -> Rates:
    return replace(
        rates, disk_read=_faster(rates.disk_read, factor), disk_write=_faster(rates.disk_write, factor)
    )


def _faster_device(rates: Rates, factor: float) -> Rates:
    """Arithmetic and memory of what computes; starting a kernel takes as long as before."""
    return replace(
        rates,
        gemm=rates.gemm.scaled(factor),
        gemm_small=rates.gemm_small and rates.gemm_small.scaled(factor),
        gemm_wide=rates.gemm_wide and rates.gemm_wide.scaled(factor),
        elementwise_bytes_per_s=rates.elementwise_bytes_per_s * factor,
        elementwise_small_bytes_per_s=rates.elementwise_small_bytes_per_s
        and rates.elementwise_small_bytes_per_s * factor,
        prompt_attention_flops_per_s=rates.prompt_attention_flops_per_s * factor,
        memory_bytes_per_s=rates.memory_bytes_per_s * factor,
        attention_bytes_per_s=rates.attention_bytes_per_s * factor,
    )


def _faster_host(rates: Rates, factor: float) -> Rates:
    """Cores and memory of the host; they also compute where there is no GPU, or an emulated one."""
    device = _faster_device(rates, factor) if rates.on_cpu else rates
    return replace(
        device,
        cpu_attention_bytes_per_s=rates.cpu_attention_bytes_per_s * factor,
        cpu_packed_attention_values_per_s=rates.cpu_packed_attention_values_per_s
        and rates.cpu_packed_attention_values_per_s * factor,
        cpu_memory_bytes_per_s=rates.cpu_memory_bytes_per_s * factor,
        call_s=rates.call_s / factor,
        operation_s=rates.operation_s / factor,
    )


_FASTER: Mapping[str, Callable[[Rates, float], Rates]] = {
    "disk-rate": _faster_disk,
    "pcie": _faster_link,
    "gpu-rate": _faster_device,
    "cpu-rate": _faster_host,
}


def _merged_gpus(problem: Problem, count: int) -> Problem:
    """Several GPUs, each with a link of its own, as one that is as good as all of them at no cost of dividing."""
    rates, target = _faster_device(problem.rates, count), problem.target
    rates = replace(
        rates,
        call_s=rates.call_s / count,
        operation_s=rates.operation_s / count,
        h2d=rates.h2d.scaled(count),
        d2h=rates.d2h.scaled(count),
        both_bytes_per_s=rates.both_bytes_per_s * count,
    )
    larger = replace(
        target,
        gpu_bytes=target.gpu_bytes * count,
        context_bytes=target.context_bytes * count,
        margins=target.margins.times(count),
    )
    return replace(problem, target=larger, rates=rates, band=None)

"""Sharing: what the ranks of a host have in common, and how fast one of them is while the others rest."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from planner.rates import Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Of its own full rate, what each rank keeps with 1, 2, ... and at last all ranks of its host at work at once."""

    h2d: tuple[float, ...]
    d2h: tuple[float, ...]
    link: tuple[float, ...]
    """Both ways of it together."""
    disk: tuple[float, ...]
    cpu_mem: tuple[float, ...]

    def room(self, name: str) -> tuple[float, ...]:
        """What there is of a thing for 1, 2, ... ranks together, in rates of one by itself."""
        kept: tuple[float, ...] = getattr(self, name)
        return tuple((n + 1) * part for n, part in enumerate(kept))

    def among(self, count: int) -> Sharing:
        """Where no more than so many ranks are ever at work at once."""
        return Sharing(**{name: getattr(self, name)[:count] for name in THINGS})


THINGS = tuple(field.name for field in fields(Sharing))


def at_full_rates(rates: Rates, sharing: Sharing | None) -> Rates:
    """A rank's rates while the others rest, from those with all at work."""
    return at_work(rates, sharing, 1) if sharing else rates


def at_work(rates: Rates, sharing: Sharing, count: int) -> Rates:
    """A rank's rates with so many ranks at work at once, from those with all."""
    kept = (getattr(sharing, name) for name in THINGS)
    h2d, d2h, link, disk, cpu_mem = (part[min(count, len(part)) - 1] / part[-1] for part in kept)
    return replace(
        rates,
        h2d=rates.h2d.scaled(h2d),
        d2h=rates.d2h.scaled(d2h),
        both_bytes_per_s=rates.both_bytes_per_s * link,
        disk_read=rates.disk_read.scaled(disk),
        disk_write=rates.disk_write.scaled(disk),
        cpu_memory_bytes_per_s=rates.cpu_memory_bytes_per_s * cpu_mem,
    )

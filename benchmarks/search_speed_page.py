"""The page of what benchmarks.search_speed found, as Markdown."""

from __future__ import annotations

from benchmarks.search_speed_result import SearchSpeed, Timed

_HEAD = """# How long a search takes

Written by `python -m benchmarks.search_speed -o benchmarks/results/search-speed.json --page docs/search-speed.md`. Each
command is a process of its own, its start and imports included; seconds are those of the median run, on the wall and
of all cores together.
"""
_LAYERS = """Models with the layers of OPT-175B, fewer or more of them, on the T4 host:"""
_OPEN = """OPT-175B, with more and more left open (`python -m planner search --model opt-175b` and these flags):"""


def page(found: SearchSpeed) -> str:
    """The whole page."""
    machine = found.machine
    (imports,) = (row for row in found.rows if row.group == "imports")
    lines = [
        _HEAD,
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}; {found.created[:10]}, commit "
        f"{found.commit[:12]}; {len(imports.wall_s)} runs of each. The machine's load average was "
        f"{found.load_average:.1f} when it began.",
        "",
        f"Of every search the imports are {_seconds(imports)}.",
        "",
        _LAYERS,
        "",
        *_table("layers", [row for row in found.rows if row.group == "layers"]),
        "",
        _OPEN,
        "",
        *_table("open", [row for row in found.rows if row.group == "open"]),
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: list[Timed]) -> list[str]:
    """Label, flags and times of each row."""
    lines = [f"| {title} | flags | wall s | cores s |", "|---|---|---|---|"]
    for row in rows:
        flags = " ".join(row.command.split()[6:])
        lines.append(f"| {row.label} | `{flags}` | {row.median_wall_s:.2f} | {row.median_cpu_s:.2f} |")
    return lines


def _seconds(row: Timed) -> str:
    return f"{row.median_wall_s:.2f} s on the wall and {row.median_cpu_s:.2f} s of the cores"

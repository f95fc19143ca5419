"""docs/functions.md from benchmarks/results/functions: python -m benchmarks.functions_page"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from benchmarks import table
from benchmarks.json_result import load_json_result
from benchmarks.measured import COLUMNS, Functions
from benchmarks.setting import Setting
from benchmarks.transfers import COLUMNS as TRANSFER_COLUMNS
from benchmarks.transfers import Transfers
from hwprofiles.errors import run_cli
from hwprofiles.files import write_atomically

RESULTS, PAGE = table.RESULTS / "functions", table.ROOT / "docs" / "functions.md"
_HEAD = """# Single functions

Written by `python -m benchmarks.functions_page` from benchmarks/results/functions; a test holds the two together.

* **Transfers** are medians, beside torch's own way of setting pinned memory up, or beside what the profile measured
  for as many threads. New space is what no block has written to before; a profile's probe writes where something was.
* **of copy**: the bytes that a function has to move over its time, of what a large copy (GPU) or a large sum (CPU)
  moves. Small ones do not fill a GPU for long enough; on a CPU a sum is not the fastest way to read. Attention to 4-bit
  K and V is bound by unpacking them, not by memory; the kernels measured here have since made room for faster ones.
* **host us**: what a call costs the thread that makes it.
* **error**: the largest difference from the plain reference over its largest value; with a wrong result nothing is
  written.
"""


def page() -> str:
    """As Markdown."""
    lines = [_HEAD]
    for path in sorted(RESULTS.glob("transfers*.json")):
        found = load_json_result(path, Transfers)
        lines += _section("Transfers", found.setting, TRANSFER_COLUMNS, [row.cells() for row in found.rows])
    for path in sorted({*RESULTS.glob("*.json")} - {*RESULTS.glob("transfers*.json")}):
        functions = load_json_result(path, Functions)
        title = "Kernels" if functions.copy_bytes_per_s else "The CPU's attention"
        rows = [tuple(cell.strip() for cell in row.cells()) for row in functions.measured]
        lines += _section(title, functions.setting, COLUMNS, rows)
    return "\n".join(lines)


def _section(
    title: str, setting: Setting, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    machine, profile = setting.machine, setting.profile
    found = machine["gpus"]
    gpus = ", ".join(map(str, found)) if isinstance(found, list) and found else "no GPU"
    yield f"## {title}, {setting.created[:16].replace('T', ' ')}\n"
    yield (
        f"`{setting.command}`: {machine['processor']} ({machine['cores']} cores), {gpus}; torch {machine['torch']}, "
        f"commit {setting.commit[:12]}."
    )
    if profile:
        yield f"Profile {profile['name']} of {profile['created']}."
    yield f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def main() -> int:
    """Write the page."""
    write_atomically(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))

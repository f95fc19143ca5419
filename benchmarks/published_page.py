"""docs/flexgen.md from benchmarks/published.yaml and the planner: python -m benchmarks.published_page"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.published import Predicted, Published, load_published, predict
from benchmarks.published_text import HEAD, SEARCHED, WHY, baselines, compared, disk, is_flexgen, order
from hwprofiles.errors import run_cli
from hwprofiles.files import write_atomically
from hwprofiles.profile import load_profile
from planner.headroom import Headroom
from planner.machine import Caps
from planner.model import load_model
from planner.plan import PHASES, Plan
from planner.policy import Bits, Split
from planner.problem import make_problem
from planner.request import BitsChoice, Request
from planner.search import search

PAGE = Path(__file__).parents[1] / "docs" / "flexgen.md"
COLUMNS = (
    "model",
    "prompt",
    "system",
    "policy",
    "published",
    "one by one",
    "predicted",
    "predicted / published",
)
SIDE_BY_SIDE = (
    "model",
    "policy",
    "block",
    "weights",
    "cache",
    "activations",
    "rows off the GPU attended by the CPU",
    "prefill",
    "decode",
    "predicted",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """A published policy beside the one that the search finds for the same case."""

    theirs: Predicted
    ours: Plan


def seek(theirs: Predicted) -> Sought:
    """As `planner search` does, with the same bits, prompts and machine."""
    published = theirs.published
    profile, model = load_profile("t4-host"), load_model(published.model)
    workload = theirs.plan.workload if theirs.plan else None
    assert workload is not None
    problem = make_problem(model, workload, profile, Caps(headroom=Headroom()))
    request = Request(weight_bits=_wanted(published.weight_bits), kv_bits=_wanted(published.kv_bits))
    ours = search(problem, request)
    assert ours is not None
    return Sought(theirs=theirs, ours=ours)


def _wanted(bits: Bits) -> BitsChoice:
    return "4" if bits == 4 else "16"


def page_of(rows: Sequence[Predicted], found: Sequence[Sought]) -> str:
    """docs/flexgen.md."""
    parts = (
        (HEAD.rstrip(),),
        _table(COLUMNS, [_cells(row) for row in rows]),
        order(rows),
        (WHY.rstrip(), baselines(rows), disk(rows)),
        (SEARCHED.rstrip(),),
        _table(SIDE_BY_SIDE, [cells for sought in found for cells in _side_by_side(sought)]),
        [_comparison(sought) for sought in found if sought.theirs.published.model == "opt-175b"],
        ("## The commands", "", *(_command(row) for row in rows)),
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _cells(row: Predicted) -> list[str]:
    published = row.published
    named = [published.model, str(published.prompt_len), published.system, _policy(published)]
    measured = [f"{published.tokens_per_s:.2f}"]
    if row.tokens_per_s is None or row.one_by_one_tokens_per_s is None:
        return [*named, *measured, "", "does not fit", ""]
    rates = [_rate(row.one_by_one_tokens_per_s), _rate(row.tokens_per_s)]
    return [*named, *measured, *rates, f"{row.tokens_per_s / published.tokens_per_s:.2f}"]


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.2f}" if tokens_per_s >= 0.1 else f"{tokens_per_s:.3f}"


def _policy(published: Published) -> str:
    placed = f" (placed as {published.placed})" if published.placed else ""
    attention = ", attention on the CPU" * published.cpu_attention
    return f"{published.percent}{placed}, {published.gpu_batch_size} x {published.num_gpu_batches}{attention}"


def _side_by_side(sought: Sought) -> Iterator[list[str]]:
    published, theirs = sought.theirs.published, sought.theirs.plan
    for name, plan in ((published.system, theirs), ("planner search", sought.ours)):
        if plan is not None:
            yield [published.model, name, *_choices(plan), *_outcome(plan)]


def _choices(plan: Plan) -> list[str]:
    policy, placement = plan.policy, plan.placement
    splits = (placement.weights, placement.cache, placement.activations)
    return [
        f"{policy.gpu_batch_size} x {policy.num_gpu_batches}",
        *(_percents(split) for split in splits),
        f"{policy.cpu_attention:.0%}",
    ]


def _percents(split: Split) -> str:
    return " / ".join(f"{100 * share:.0f}" for _, share in split.items())


def _outcome(plan: Plan) -> list[str]:
    seconds = [
        f"{plan.prediction.of(phase).seconds:.0f} s, {plan.prediction.of(phase).binding}" for phase in PHASES
    ]
    return [*seconds, _rate(plan.prediction.throughput_tokens_per_s)]


def _comparison(sought: Sought) -> str:
    assert sought.theirs.plan is not None
    return compared(sought.theirs.published.system, sought.theirs.plan, sought.ours)


def _command(row: Predicted) -> str:
    return f"    planner estimate {' '.join(row.published.flags)}"


def make_page() -> str:
    """Prices and searches all cases."""
    rows = [predict(published) for published in load_published()]
    return page_of(rows, [seek(row) for row in rows if is_compared(row)])


def is_compared(row: Predicted) -> bool:
    """FlexGen's own policies for prompts of 512."""
    return row.published.prompt_len == 512 and is_flexgen(row)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()

    def body() -> int:
        write_atomically(options.output, make_page())
        return 0

    return run_cli(body)


if __name__ == "__main__":
    sys.exit(main())

"""The page of what benchmarks.best_plan found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.best_plan_result import CHOSEN, BestPlan


def page(results: Sequence[BestPlan]) -> str:
    """All results, one section each."""
    lines = [
        "# Is the chosen plan the best one?",
        "",
        "Written by `python -m benchmarks.best_plan page benchmarks/results/best-plan/*.json -o docs/best-plan.md`;",
        "the JSONs hold the commands, the machine, the commit and every round. Plans: the one that the search chose,",
        "its neighbours in every variable, simple baselines and published policies; what does not fit is run with",
        "smaller gpu batches. Rates are of the whole job. Measured is the median round; the fastest plans had more",
        "rounds. Policies are gpu batch size x number of gpu batches, then percents of weights, cache and activations",
        "on gpu / cpu / disk.",
    ]
    for result in results:
        lines += ["", *section(result)]
    return "\n".join(lines) + "\n"


def section(result: BestPlan) -> Iterator[str]:
    """One machine: a table a case, the fastest plan first."""
    yield from result.setting.heading()
    for found in result.found:
        yield ""
        yield f"### {found.case}: the chosen plan is at {found.share:.1%} of the fastest of {len(found.plans)}"
        yield ""
        yield f"`planner search {result.cases[found.case].planner}`"
        yield ""
        yield "| plan | policy | measured tok/s | rounds | predicted tok/s |"
        yield "|---|---|---|---|---|"
        for plan in found.plans:
            label = f"**{plan.label}**" if plan.label == CHOSEN else plan.label
            yield (
                f"| {label} | {plan.policy} | {plan.tokens_per_s:.2f} | {len(plan.measured_tokens_per_s)} "
                f"| {plan.predicted_tokens_per_s:.2f} |"
            )

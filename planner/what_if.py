"""What if: the plan that a new search finds on a changed machine, beside the one on the machine as it is.

Every policy found is tried on every machine, so that a machine that is better in everything is never said to be
slower, whatever a search happens to miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from planner.machine_change import Change
from planner.plan import PHASES, Phase, Plan
from planner.policy import Policy, Split
from planner.problem import Problem
from planner.realise import is_quick_enough
from planner.request import Request
from planner.search import score, search
from planner.shortage import explain_shortage

Reporter = Callable[[str], None]
_NOTICED = 0.01
"""Changes of a share that are worth a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The best plan for one machine; without a plan, why none fits."""

    change: str
    """As the user wrote it; empty: the machine as it is."""
    is_bound: bool
    """No plan can be faster, but there need not be one that is as fast."""
    tokens_per_s: float | None
    gain: float | None
    """Of the tokens per second on the machine as it is, as a fraction; there, of the given plan's."""
    binding: Mapping[Phase, str]
    """The resource that binds each phase then."""
    differs: tuple[str, ...]
    """What the plan does that the one for the machine as it is does not."""
    policy: Policy | None
    failure: str | None


def what_ifs(
    problem: Problem,
    plan: Plan,
    asked: Sequence[Sequence[Change]],
    report: Reporter = lambda _: None,
) -> tuple[Answer, ...]:
    """The machine as it is, then each set of changes in turn; all searched with the plan's own request."""
    request = plan.request or request_like(plan)
    machines = [problem, *(_changed(problem, changes) for changes in asked)]
    found = []
    for machine, changes in zip(machines, [(), *asked], strict=True):
        report(f"searching with {_text(changes) or 'the machine as it is'}")
        found.append(search(machine, request))
    policies = dict.fromkeys([plan.policy, *(best.policy for best in found if best)])
    now, *then = (_best(machine, request, policies) for machine in machines)
    before = now or plan
    return (
        _answer(problem, problem, request, (), now, plan),
        *(
            _answer(problem, machine, request, changes, best, before)
            for machine, changes, best in zip(machines[1:], asked, then, strict=True)
        ),
    )


def request_like(plan: Plan) -> Request:
    """For a policy that nobody searched for: the same bits, and attention where it pays."""
    policy = plan.policy
    return Request(
        weight_bits="4" if policy.weight_bits == 4 else "16", kv_bits="4" if policy.kv_bits == 4 else "16"
    )


def _changed(problem: Problem, changes: Iterable[Change]) -> Problem:
    for change in changes:
        problem = change.apply(problem)
    return problem


def _text(changes: Iterable[Change]) -> str:
    return ",".join(change.text for change in changes)


def _best(machine: Problem, request: Request, policies: Iterable[Policy]) -> Plan | None:
    """The fastest of the policies that fit."""
    plans = (machine.plan(policy) for policy in policies)
    fitting = [plan for plan in plans if not plan.ledger.shortfalls(machine.target)]
    quick = [plan for plan in fitting if is_quick_enough(plan, request)]
    return max(quick, key=lambda plan: score(machine, plan), default=None)


def _answer(
    problem: Problem,
    machine: Problem,
    request: Request,
    changes: Sequence[Change],
    plan: Plan | None,
    before: Plan,
) -> Answer:
    rate = score(machine, plan) if plan else None
    return Answer(
        change=_text(changes),
        is_bound=any(change.is_bound for change in changes),
        tokens_per_s=rate,
        gain=None if rate is None else rate / score(problem, before) - 1,
        binding={phase: plan.prediction.of(phase).binding for phase in PHASES} if plan else {},
        differs=tuple(differences(before.policy, plan.policy)) if plan else (),
        policy=plan.policy if plan else None,
        failure=None if plan else explain_shortage(machine, request),
    )


def differences(before: Policy, after: Policy) -> list[str]:
    """What another policy does otherwise, in a few words each."""
    changed = []
    if (before.gpu_batch_size, before.num_gpu_batches) != (after.gpu_batch_size, after.num_gpu_batches):
        changed.append(f"gpu batch {_blocks(before)} to {_blocks(after)}")
    for name, old, new in (
        ("weight", before.weight_bits, after.weight_bits),
        ("cache", before.kv_bits, after.kv_bits),
    ):
        if old != new:
            changed.append(f"{name} {old} to {new} bits")
    for name, split, other in (
        ("weights", before.weights, after.weights),
        ("cache", before.cache, after.cache),
        ("activations", before.activations, after.activations),
    ):
        changed += _moved(name, split, other)
    if abs(before.cpu_attention - after.cpu_attention) >= _NOTICED:
        changed.append(f"attended on the CPU {_percents(before.cpu_attention, after.cpu_attention)}")
    return changed


def _blocks(policy: Policy) -> str:
    return f"{policy.gpu_batch_size} x {policy.num_gpu_batches}"


def _moved(name: str, before: Split, after: Split) -> list[str]:
    """The tiers that hold more or less; the last of them follows from the others."""
    pairs = [(tier, share, dict(after.items())[tier]) for tier, share in before.items()]
    moved = [(tier, old, new) for tier, old, new in pairs if abs(new - old) >= _NOTICED]
    return [f"{name} on {tier} {_percents(old, new)}" for tier, old, new in moved[: max(1, len(moved) - 1)]]


def _percents(before: float, after: float) -> str:
    return f"{100 * before:.0f}% to {100 * after:.0f}%"

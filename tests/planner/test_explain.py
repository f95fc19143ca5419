"""`planner explain`: reasons that follow from the cost model and the ledger, and the command around them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.points import Rate
from hwprofiles.profile import Calibration, HardwareProfile, load_profile
from planner.cli import main
from planner.explain import reasons
from planner.machine import Caps
from planner.plan import PHASES, Plan, load_plan
from planner.policy import Split
from planner.problem import Problem, make_problem
from planner.relief import bound_sentence
from planner.render_explain import holding_sentence, tier_sentence
from planner.request import Request
from planner.search import search
from planner.workload import Workload
from tests.planner.problems import (
    GB,
    MB,
    ON_CPU,
    ON_DISK,
    ON_GPU,
    emulated,
    policy_of,
    problem_of,
    small_mixtral,
    small_opt,
)

TIGHT = ("--gpu-mem", "1GB", "--cpu-mem", "5GB", "--prompt-len", "32", "--gen-len", "8")


def found(problem: Problem) -> Plan:
    """The plan a search finds."""
    plan = search(problem, Request())
    assert plan is not None
    return plan


def faster_host_memory(profile: HardwareProfile) -> HardwareProfile:
    """The same profile with twice the rates of the cores, measured anew."""

    def twice(rate: Rate) -> Rate:
        return replace(rate, median=2 * rate.median)

    host = profile.host
    return replace(
        profile,
        host=replace(
            host,
            memory_bytes_per_s=twice(host.memory_bytes_per_s),
            gemm={
                dtype: tuple(replace(p, flops_per_s=twice(p.flops_per_s)) for p in points)
                for dtype, points in host.gemm.items()
            },
            attention={
                dtype: tuple(replace(p, bytes_per_s=twice(p.bytes_per_s)) for p in points)
                for dtype, points in host.attention.items()
            },
            elementwise_bytes_per_s=host.elementwise_bytes_per_s and twice(host.elementwise_bytes_per_s),
            prompt_attention={dtype: twice(rate) for dtype, rate in host.prompt_attention.items()},
            layer=tuple(
                replace(p, seconds=replace(p.seconds, median=p.seconds.median / 2)) for p in host.layer
            ),
        ),
    )


def test_what_binds_is_what_the_plan_says() -> None:
    """Seconds, resource and busy shares of both phases; a phase that is not run binds nothing."""
    problem = problem_of(small_opt(), gpu=GB)
    plan = problem.plan(policy_of(ON_CPU, ON_CPU, ON_GPU))
    bounds = reasons(problem, plan).phases
    assert [bound.phase for bound in bounds] == list(PHASES)
    for bound in bounds:
        phase = plan.prediction.of(bound.phase)
        assert (bound.seconds, bound.binding) == (phase.seconds, phase.binding)
        assert list(bound.busy_share.values()) == sorted(bound.busy_share.values(), reverse=True)
        assert bound.relieved_s <= bound.seconds
        assert f"{bound.phase}: {bound.binding} binds" in bound_sentence(bound)
    single = problem_of(small_opt(), gpu=GB, gen_len=1)
    plan = single.plan(policy_of(ON_CPU, ON_CPU, ON_GPU))
    assert [bound.phase for bound in reasons(single, plan).phases] == ["prefill"]


@pytest.mark.parametrize("profile", [load_profile("two-core"), emulated()], ids=["host", "emulated"])
def test_relief_is_the_plan_on_a_profile_twice_as_fast(profile: HardwareProfile) -> None:
    """Where the cores bind, twice as fast cores in the profile itself give the same seconds."""
    near = ON_GPU if profile.gpus else ON_CPU
    problem, policy = problem_of(small_opt(), profile), policy_of(near, near, near)
    fast = faster_host_memory(profile)
    if profile.gpus:
        gpu = replace(
            profile.gpus[0],
            gemm=fast.host.gemm,
            memory_bytes_per_s=fast.host.memory_bytes_per_s,
            launch_overhead_s=Rate(median=profile.gpus[0].launch_overhead_s.median / 2),
        )
        fast = replace(fast, gpus=(gpu,))
    expected = problem_of(small_opt(), fast).plan(policy).prediction
    for bound in reasons(problem, problem.plan(policy)).phases:
        assert bound.remedy == "cpu-rate=x2"
        assert bound.relieved_s == pytest.approx(expected.of(bound.phase).seconds)


@pytest.mark.parametrize("model", [small_opt(), small_mixtral()], ids=["opt", "mixtral"])
def test_tiers_hold_what_the_ledger_says(model: object) -> None:
    """Holdings and what is needed to work with are the peak; shares of a kind sum to 1."""
    problem = problem_of(small_opt() if model is None else model, gpu=GB)  # type: ignore[arg-type]
    split = Split(gpu=0.25, cpu=0.5, disk=0.25)
    plan = problem.plan(policy_of(split, split, ON_CPU))
    views = reasons(problem, plan).tiers
    assert [view.tier for view in views] == ["gpu", "cpu", "disk"]
    for view in views:
        assert sum(holding.num_bytes for holding in view.holdings) + view.other_bytes == view.peak_bytes
        assert view.peak_bytes == plan.ledger.peak_bytes(view.tier)
    for kind in ("weights", "cache", "activations"):
        shares = [h.share for view in views for h in view.holdings if h.kind == kind]
        assert sum(shares) == pytest.approx(1)


def test_a_move_is_the_estimate_of_the_moved_policy() -> None:
    """Its bytes leave one tier's ledger for another's; its time and what it lacks are those of such a policy."""
    problem = problem_of(small_opt(num_layers=24), gpu=2 * GB)
    split = Split(gpu=0.5, cpu=0.5, disk=0)
    plan = problem.plan(policy_of(split, ON_CPU, ON_GPU, size=16, batches=4))
    (gpu,) = (view for view in reasons(problem, plan).tiers if view.tier == "gpu")
    (weights,) = (holding for holding in gpu.holdings if holding.kind == "weights")
    (move,) = (move for move in weights.moves if move.to == "cpu")
    share = 100 * 2**20 / sum(plan.ledger.bytes_of(tier, "weights") for tier in ("gpu", "cpu", "disk"))
    other = problem.plan(replace(plan.policy, weights=Split(gpu=0.5 - share, cpu=0.5 + share, disk=0)))
    before, after = (found.prediction.throughput_tokens_per_s for found in (plan, other))
    assert move.slower == pytest.approx(before / after - 1)
    assert move.slower > 0
    assert move.num_bytes == other.ledger.bytes_of("cpu", "weights") - plan.ledger.bytes_of("cpu", "weights")
    assert move.num_bytes == pytest.approx(100 * 2**20, rel=0.1)
    assert move.lacking_bytes == other.ledger.shortfalls(problem.target).get("cpu", 0)


def test_a_limit_binds_where_more_is_wanted() -> None:
    """With all at home on a large GPU nothing is; with little of it, what would be faster there lacks room."""
    roomy = problem_of(small_opt(), num_prompts=8)
    plan = found(roomy)
    assert plan.policy.weights.gpu == 1
    why = reasons(roomy, plan)
    assert why.binding_limits == ()
    assert "its limit does not bind" in tier_sentence(why.tiers[0], binds=False)
    tight = problem_of(small_opt(num_layers=12), gpu=250 * MB, num_prompts=8)
    plan = tight.plan(policy_of(ON_CPU, ON_GPU, ON_GPU, size=4, batches=2))
    why = reasons(tight, plan)
    (weights,) = (h for view in why.tiers if view.tier == "cpu" for h in view.holdings if h.kind == "weights")
    (to_gpu,) = (move for move in weights.moves if move.to == "gpu")
    assert to_gpu.slower < 0
    assert ("gpu" in why.binding_limits) == bool(to_gpu.lacking_bytes)
    sentence = holding_sentence(weights)
    assert f" of it on gpu {-100 * to_gpu.slower:.2f}% less" in sentence
    assert ("there is room for it" in sentence) == (not to_gpu.lacking_bytes)


def test_alternatives_are_estimates_of_the_changed_policy() -> None:
    """A larger block, and attention elsewhere, each with what it lacks."""
    problem = problem_of(small_opt(num_layers=12), gpu=300 * MB, cpu=500 * MB)
    plan = problem.plan(policy_of(ON_CPU, ON_CPU, ON_GPU, size=8, batches=2, cpu_attention=0.5))
    before = plan.prediction.throughput_tokens_per_s
    others = reasons(problem, plan).alternatives
    changes = [
        replace(plan.policy, num_gpu_batches=3),
        replace(plan.policy, gpu_batch_size=9),
        replace(plan.policy, cpu_attention=1.0),
        replace(plan.policy, cpu_attention=0.0),
    ]
    assert len(others) == len(changes)
    for other, policy in zip(others, changes, strict=True):
        expected = problem.plan(policy)
        assert other.gain == pytest.approx(expected.prediction.throughput_tokens_per_s / before - 1)
        assert other.lacking_bytes == expected.ledger.shortfalls(problem.target)


def test_attention_on_the_cpu_is_no_alternative_without_a_gpu() -> None:
    """Where the CPU computes anyway there is nothing to choose."""
    problem = problem_of(small_opt(), load_profile("two-core"))
    others = reasons(problem, problem.plan(policy_of(cache=ON_DISK))).alternatives
    assert [other.what for other in others] == ["a gpu batch more (4 x 3)", "larger gpu batches (5 x 2)"]


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of opt-125m on the T4 host, under caps that bind."""
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    assert main(["search", "--model", "opt-125m", "--hw", "t4-host", *TIGHT, "-o", str(path), "--json"]) == 0
    return path


def test_everything_is_explained(plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without flags: what binds, what each tier holds, and a unit more of each; the rates are the plan's own."""
    assert main(["explain", str(plan_path)]) == 0
    shown = capsys.readouterr().out
    units = ("gpu-mem=+8GB", "cpu-mem=+64GB", "disk=x2", "disk-rate=x2", "pcie=x2", "gpus=2")
    assert all(
        word in shown for word in ("What binds", "prefill:", "decode:", "What each tier holds", *units)
    )
    assert "at most" in shown


def test_json_is_all_that_is_printed(plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what was asked for is there; the rest is null."""
    flags = ("--what-if", "cpu-mem=8GB", "--what-if", "pcie=x2,gpu-mem=+1GB", "--why-not", "--kv-bits=4")
    assert main(["explain", str(plan_path), *flags, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [answer["change"] for answer in data["what_ifs"]] == ["", "cpu-mem=8GB", "pcie=x2,gpu-mem=+1GB"]
    assert data["why_not"]["policy"]["kv_bits"] == 4
    assert (data["reasons"], data["diff"]) == (None, None)
    assert main(["explain", str(plan_path), "--diff", str(plan_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["diff"], data["reasons"], data["what_ifs"], data["why_not"]) == ([], None, None, None)


def test_why_not_keeps_what_is_not_said(plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The percents are the user's, all else is the plan's; nothing said is the plan itself."""
    percent = ("--why-not", "--percent 0 100 0 100 0 100 --num-gpu-batches 1")
    assert main(["explain", str(plan_path), *percent, "--json"]) == 0
    policy = json.loads(capsys.readouterr().out)["why_not"]["policy"]
    assert main(["explain", str(plan_path), "--why-not", ""]) == 0
    assert "there is no difference" in capsys.readouterr().out
    plan = json.loads(json.dumps(policy))
    assert plan["weights"] == {"gpu": 0.0, "cpu": 1.0, "disk": 0.0}
    assert plan["num_gpu_batches"] == 1


def test_a_diff_with_itself_is_empty(plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to show, and no profile is needed for it."""
    text = plan_path.read_text().replace("name: t4-host", "name: unknown-host")
    other = plan_path.with_name("other.yaml")
    other.write_text(text)
    assert main(["explain", str(other), "--diff", str(other)]) == 0
    assert capsys.readouterr().out.strip() == "The plans are the same."
    assert main(["explain", str(plan_path), "--diff", str(other)]) == 0
    shown = capsys.readouterr().out
    assert "unknown-host" in shown
    assert "gpu_batch_size" not in shown


def test_a_plan_is_priced_at_its_own_rates(
    plan_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --hw at those in the file, with it at the profile's; another profile is warned about."""
    plan = load_plan(plan_path)
    path, hw = tmp_path / "plan.yaml", tmp_path / "hw.yaml"
    path.write_text(replace(plan, rates=None).to_yaml())
    assert main(["explain", str(path), "--why-not", ""]) == 2
    assert "the plan holds no rates" in capsys.readouterr().err
    profile = load_profile("t4-host")
    fast = replace(
        profile,
        calibration=Calibration(factors={"gpu": 0.5, "h2d": 0.5}, num_runs=1, error_before=0, error_after=0),
    )
    hw.write_text(fast.to_yaml())
    rates = []
    for flags in ((), ("--hw", "t4-host"), ("--hw", str(hw))):
        assert main(["explain", str(plan_path), "--why-not", "", "--json", *flags]) == 0
        captured = capsys.readouterr()
        rates.append(json.loads(captured.out)["why_not"]["tokens_per_s"])
        assert ("warning: the plan was made with another profile" in captured.err) == (str(hw) in flags)
    assert rates[0] == pytest.approx(plan.throughput_tokens_per_s)
    assert rates[1] == rates[0] < rates[2]


def test_lengths_and_the_whole_job_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two plans for many prompts: their number, their lengths, and the time of all blocks."""
    paths = []
    for lengths in ([(40, 8)] * 30 + [(20, 4)] * 30, [(40, 8)] * 30 + [(20, 5)] * 31):
        workload = Workload.of_lengths(lengths, 8)
        problem = make_problem(small_opt(), workload, load_profile("t4-host"), Caps())
        paths.append(tmp_path / f"{len(lengths)}.yaml")
        paths[-1].write_text(problem.plan(policy_of()).to_yaml())
    assert main(["explain", str(paths[0]), "--diff", str(paths[1]), "--json"]) == 0
    lines = {
        line["name"]: (line["left"], line["right"]) for line in json.loads(capsys.readouterr().out)["diff"]
    }
    assert lines["num_prompts"] == (60, 61)
    assert "lengths" in lines
    assert "job decode_s" in lines


MISTAKES = {
    "what-if": (("--what-if", "foo=x2"), "--what-if 'foo=x2' is not understood; write gpu-mem"),
    "percents": (("--why-not", "--percent 1 2"), "--why-not: argument --percent: expected 6 arguments"),
    "flag": (("--why-not", "--foo"), "--why-not: unrecognized arguments: --foo"),
    "help": (("--why-not", "--help"), "--why-not: unrecognized arguments: --help"),
    "quotes": (("--why-not", "'"), "cannot be split into words"),
    "batch": (("--why-not", "--gpu-batch-size 0"), "gpu_batch_size is 0"),
    "over": (("--why-not", "--percent 60 50 0 100 0 100"), "--percent for weights is 60 on gpu and 50"),
    "other": (("--diff", "/nowhere.yaml"), "/nowhere.yaml"),
    "profile": (("--hw", "two-core"), "the plan computes on the gpu, profile two-core on the cpu"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line(name: str, plan_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, the value and the remedy, and nothing on stdout."""
    flags, complaint = MISTAKES[name]
    assert main(["explain", str(plan_path), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err.splitlines()[-1]

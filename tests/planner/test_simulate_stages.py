"""Pipelines played together: as by hand, never faster than the work, one stage as the one-stage simulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.points import Graph, Rate, SizePoint
from hwprofiles.profile import Gpu, HardwareProfile, LinksAtOnce, load_profile
from planner.cli import main
from planner.cluster import Cluster
from planner.coarse import plays
from planner.estimate_stages import estimate_stages
from planner.host_share import sharing_of
from planner.ledger import NCCL
from planner.machine import Caps
from planner.messages import NCCL_BYTES
from planner.model import ModelSpec
from planner.plan import PHASES, Plan, load_plan
from planner.policy import CommDevice, Policy, Split, Tier
from planner.request import Request
from planner.sample import few_tokens, representatives
from planner.script import Script
from planner.search_stages import few_waves, search_stages
from planner.sharing import at_full_rates, at_work
from planner.simulate import Simulation, simulate
from planner.simulate_stages import Part, parts_of, simulate_stages, stages_times
from planner.task_costs import TaskCosts
from planner.tasks import TaskKind
from planner.workload import Workload
from tests.planner.problems import (
    GB,
    MB,
    ON_CPU,
    ON_GPU,
    emulated,
    policy_of,
    problem_of,
    small_opt,
    small_t4,
)

THIRDS = Split(gpu=0.3, cpu=0.4, disk=0.3)
ROUNDING = 3e-3
"""Of shares, which a pipeline's simulation rounds so that they are alike more often."""
NET = (SizePoint(size_bytes=2**20, bytes_per_s=Rate(median=1e9)),)


def links(*h2d: float) -> tuple[LinksAtOnce, ...]:
    """So many GB/s for 1, 2, ... GPUs at work, in each direction and in both together."""
    return tuple(
        LinksAtOnce(
            num_gpus=n + 1,
            h2d_bytes_per_s=Rate(median=rate * 1e9),
            d2h_bytes_per_s=Rate(median=rate * 1e9),
            both_bytes_per_s=Rate(median=1.5 * rate * 1e9),
        )
        for n, rate in enumerate(h2d)
    )


def several_t4(count: int, *h2d: float) -> HardwareProfile:
    """A host with T4s, its processes some way from one another."""
    profile = small_t4()
    return dataclasses.replace(
        profile, gpus=profile.gpus * count, links_at_once=links(*h2d), between_processes=NET
    )


def staged(
    policy: Policy,
    *,
    num_stages: int = 2,
    num_waves: int = 2,
    model: ModelSpec | None = None,
    host: HardwareProfile | None = None,
    comm_device: CommDevice = "cpu",
    gen_len: int = 4,
    num_prompts: int | None = None,
) -> Plan:
    """A policy on all stages of a small model."""
    cluster = Cluster(
        model=model or small_opt(8),
        workload=Workload(prompt_len=64, gen_len=gen_len, num_prompts=num_prompts),
        hosts=(host or several_t4(num_stages),),
        caps=Caps(),
        comm_device=comm_device,
    )
    return estimate_stages(cluster, num_stages, num_waves, lambda _: policy)


def by_kind(simulation: Simulation, i: int) -> dict[tuple[str, int], float]:
    """Seconds of the first task of each kind and layer for token i."""
    found: dict[tuple[str, int], float] = {}
    for span in simulation.spans:
        if span.i == i:
            found.setdefault((f"{span.kind} {span.lane}", span.j), span.stop_s - span.start_s)
    return found


@pytest.mark.parametrize("comm_device", ["cpu", "cuda"])
@pytest.mark.parametrize("tier", ["gpu", "cpu"])
def test_what_nccl_takes_is_in_the_ledger(comm_device: CommDevice, tier: Tier) -> None:
    """Of every rank's GPU and of the host, where hidden states pass from GPU to GPU."""
    plan = staged(policy_of(ON_GPU, ON_GPU, ON_GPU, size=4, batches=2), comm_device=comm_device)
    found = [plan.of_rank(rank).ledger.bytes_of(tier, NCCL) for rank in range(2)]
    assert found == [NCCL_BYTES[tier] if comm_device == "cuda" else 0] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stage_is_replayed_though_one_of_its_layers_is_not(rank: int) -> None:
    """The layer that a message comes to or leaves from is called for every token; all others are replayed."""
    gpus = load_profile("h200x4-host").gpus[:2]
    host = dataclasses.replace(several_t4(2), gpus=tuple(with_graphs(gpu) for gpu in gpus))
    policy = policy_of(ON_GPU, ON_CPU, ON_GPU, size=4, batches=2)
    part = staged(policy, host=host, gen_len=16, comm_device="cuda").of_rank(rank)
    sizes, num_layers = part.sizes(), len(part.sizes().slabs)
    called = 0 if rank else num_layers - 1
    assert set(range(num_layers)) - set(sizes.graphs.layers) == {called}
    script = Script(
        TaskCosts(sizes, part.known_rates()), tuple(range(16)), [((j, 1.0),) for j in range(num_layers)]
    )
    asked_s = {
        task.j: load.issue_s
        for task, load in zip(script.tasks, script.loads, strict=True)
        if task.kind is TaskKind.COMPUTE and (task.i, task.k) == (10, 0) and 0 <= task.j < num_layers
    }
    longest_s = max(seconds for j, seconds in asked_s.items() if j != called)
    assert asked_s[called] > 1.5 * longest_s


def with_graphs(gpu: Gpu) -> Gpu:
    """One that says what starting a graph takes."""
    return dataclasses.replace(gpu, graph=Graph(replay_s=Rate(median=1e-5), operation_bytes=1))


def test_a_small_pipeline_as_by_hand() -> None:
    """Two stages of a layer, two waves of a gpu batch, all at home: message by message, token by token.

    The host asks for the work in no time.
    """
    policy = policy_of(ON_GPU, ON_GPU, ON_GPU, size=4, batches=2)
    plan = staged(policy, model=small_opt(2), comm_device="cuda", gen_len=2)
    first, second = simulate_stages(
        [
            dataclasses.replace(
                part, rates=dataclasses.replace(part.rates, call_s=0.0, operation_s=0.0, task_overhead_s=0.0)
            )
            for part in parts_of(plan)
        ]
    )
    end_s = 0.0
    free_s = {"first": 0.0, "second": 0.0, "net": 0.0}
    ids_s = [0.0, 0.0]
    for i in range(2):
        ours, theirs = by_kind(first, i), by_kind(second, i)
        embed = ours["compute gpu", -1] + ours["compute gpu", 0]
        before, then = theirs["compute gpu", -1], sum(theirs["compute gpu", j] for j in (0, 1))
        for wave in range(2):
            free_s["first"] = max(free_s["first"], ids_s[wave]) + embed
            free_s["net"] = max(free_s["net"], free_s["first"]) + ours["send net_out", 0]
            free_s["second"] = max(free_s["second"] + before, free_s["net"]) + then
            ids_s[wave] = end_s = free_s["second"] + theirs["send net_out", 1]
        assert first.token_ends_s[i] == pytest.approx(end_s, rel=1e-9)
    assert second.token_ends_s == first.token_ends_s
    assert first.seconds == pytest.approx(end_s)
    took = {span.i: span.stop_s - span.start_s for span in first.spans if span.kind == "send"}
    hidden = 4 * 1024 * 2
    assert took[0] / took[1] == pytest.approx(max(1.0, 64 * hidden / 2**20), rel=0.2), (
        "small ones take as long"
    )


@pytest.mark.parametrize("name", ["gpu", "far", "three tiers", "cpu attention", "emulated"])
def test_one_stage_is_the_one_stage_simulation(name: str) -> None:
    """The same times, spans and throughput as without a pipeline."""
    splits = {"gpu": (ON_GPU,) * 3, "far": (ON_CPU,) * 3}.get(name, (THIRDS,) * 3)
    attends = 0.5 if name == "cpu attention" else 0.0
    policy = policy_of(*splits, size=10, batches=3, cpu_attention=attends)
    problem = problem_of(small_opt(5), emulated() if name == "emulated" else None, prompt_len=20, gen_len=4)
    sizes = problem.plan(policy).sizes()
    (found,), alone = (
        simulate_stages([Part(sizes=sizes, rates=problem.rates)]),
        simulate(sizes, problem.rates),
    )
    assert seconds_of([found]) == pytest.approx(seconds_of([alone]), rel=ROUNDING)
    assert [(span.id, span.start_s, span.stop_s) for span in found.spans] == [
        (span.id, pytest.approx(span.start_s, rel=ROUNDING), pytest.approx(span.stop_s, rel=ROUNDING))
        for span in alone.spans
    ]
    assert found.throughput_tokens_per_s == pytest.approx(alone.throughput_tokens_per_s, rel=ROUNDING)


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Shares in steps of a tenth."""
    gpu = draw(st.integers(0, 10))
    cpu = draw(st.integers(0, 10 - gpu))
    return Split(gpu=gpu / 10, cpu=cpu / 10, disk=(10 - gpu - cpu) / 10)


@st.composite
def pipelines(draw: st.DrawFn) -> Plan:
    """Two to four stages over three tiers, some waves, links that are their own or shared."""
    num_stages, batches = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    policy = policy_of(
        draw(splits()),
        draw(splits()),
        draw(splits()),
        size=draw(st.integers(1, 6)),
        batches=batches,
        cpu_attention=draw(st.sampled_from((0.0, 0.5))),
    )
    host = several_t4(num_stages, *draw(st.sampled_from(((), (12, 18, 20, 21), (12, 12, 12, 12)))))
    if draw(st.booleans()):
        emulated_gpu = dataclasses.replace(emulated().gpus[0], memory_bytes=4 * GB)
        host = dataclasses.replace(emulated(), gpus=(emulated_gpu,))
    num_waves = draw(st.integers(1, batches))
    return staged(policy, num_stages=num_stages, num_waves=num_waves, host=host)


@settings(max_examples=20, deadline=None)
@given(plan=pipelines())
def test_never_faster_than_the_bound(plan: Plan) -> None:
    """What each rank's lanes, and all ranks of the host on what they share, have to do fits into the time."""
    parts = parts_of(plan)
    found = simulate_stages(parts)
    end_s = max(each.end_s for each in found)
    for each in found:
        assert max(each.work_s.values()) <= end_s * 1.001
        assert each.token_ends_s[-1] == pytest.approx(each.seconds)
    sharing = parts[0].sharing
    if sharing:
        for name in ("h2d", "disk", "link", "cpu_mem"):
            full = [at_full_rates(part.rates, part.sharing) for part in parts]
            work = [
                sum(span.num_bytes for span in each.spans if span.lane == "h2d") / rates.h2d.best
                if name == "h2d"
                else each.work_s.get(name, 0.0)
                for each, rates in zip(found, full, strict=True)
            ]
            assert sum(work) <= max(sharing.room(name)) * end_s * 1.005, name


@settings(max_examples=20, deadline=None)
@given(plan=pipelines())
def test_messages_begin_and_end_on_both_ranks_at_once(plan: Plan) -> None:
    """Around the ring, what one rank sends is what the next one receives, at the same time."""
    found = simulate_stages(parts_of(plan))
    for one, other in zip(found, [*found[1:], found[0]], strict=True):
        sent, received = (
            [(span.i, span.k, span.start_s, span.stop_s) for span in each.spans if span.lane == lane]
            for each, lane in ((one, "net_out"), (other, "net_in"))
        )
        assert sent == received


def seconds_of(found: Sequence[Simulation]) -> list[float]:
    return [found[0].phases[phase].seconds for phase in PHASES]


@pytest.mark.parametrize("batches", [4, 9])
@pytest.mark.parametrize("weights", [ON_CPU, Split(gpu=0.45, cpu=0.55, disk=0), THIRDS], ids=str)
def test_a_few_groups_of_layers_take_as_long_as_all(weights: Split, batches: int) -> None:
    """Two coarse plays are within a tenth of every layer of every token, and play a fraction of them."""
    policy = policy_of(weights, Split(gpu=0.5, cpu=0.5, disk=0), ON_GPU, size=8, batches=batches)
    plan = staged(policy, model=small_opt(50), num_waves=3, gen_len=12)
    parts = parts_of(plan)
    coarse = plays([part.sizes for part in parts], few_tokens(parts[0].sizes), 300)
    assert sum(len(stage) for play in coarse for stage in play.stages) <= 24
    for play in coarse:
        for stage, own in zip(play.stages, plan.stages, strict=True):
            assert sum(part for group in stage for _, part in group) == pytest.approx(
                own.layers[1] - own.layers[0]
            )
    short = [stages_times(parts, 300)[0][phase].seconds for phase in PHASES]
    assert short == pytest.approx(
        seconds_of(simulate_stages(parts, representatives([part.sizes for part in parts], 99))), rel=0.1
    )


def test_ranks_wait_for_what_they_share() -> None:
    """Two GPUs behind one link take about twice as long as with one each, where all weights are streamed."""
    policy = policy_of(ON_CPU, ON_GPU, ON_GPU, size=2, batches=2)
    own, shared = (
        staged(policy, host=several_t4(2, *rates)).prediction.decode for rates in ((12, 24), (12, 12))
    )
    assert own.binding == shared.binding == "h2d"
    assert shared.seconds == pytest.approx(2 * own.seconds, rel=0.1)


def test_one_rank_at_a_time_has_the_link_to_itself() -> None:
    """With a single wave the ranks work in turn: a shared link hardly slows them."""
    policy = policy_of(ON_CPU, ON_GPU, ON_GPU, size=2, batches=1)
    own, shared = (
        staged(policy, num_waves=1, host=several_t4(2, *rates)).prediction.decode
        for rates in ((12, 24), (12, 12))
    )
    assert shared.seconds == pytest.approx(own.seconds, rel=0.15)


def test_rates_of_a_rank_while_others_rest() -> None:
    """From a share of the host with all at work to what a rank has with fewer, and alone."""
    host = several_t4(4, 12, 18, 20, 21)
    sharing = sharing_of(host, 4)
    assert sharing is not None
    assert sharing.h2d == pytest.approx((1.0, 18 / 24, 20 / 36, 21 / 48))
    assert sharing.room("h2d") == pytest.approx((1.0, 1.5, 20 / 12, 21 / 12))
    rates = staged(policy_of(), num_stages=4, num_waves=2, host=host).stages[0].rates
    assert rates is not None
    alone = at_full_rates(rates, sharing.among(2))
    assert alone.h2d.best == pytest.approx(host.gpus[0].link.h2d_pinned[-1].bytes_per_s.median)
    assert at_work(rates, sharing.among(2), 2) == rates
    assert sharing_of(host, 1) is None


def test_the_final_figure_is_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Formula beside simulation in the plan; `planner simulate` plays all of it, a group of lanes for each rank."""
    plan = staged(policy_of(THIRDS, THIRDS, ON_GPU, size=6, batches=4), num_prompts=48, gen_len=8)
    for phase in PHASES:
        assert plan.prediction.of(phase).formula_s
        assert plan.prediction.of(phase).seconds >= max(plan.prediction.of(phase).busy_s.values()) * 0.999
    assert plan.job is not None
    assert plan.job.seconds == pytest.approx(2 * plan.prediction.seconds, rel=0.01)
    path, trace = tmp_path / "plan.yaml", tmp_path / "trace.json"
    path.write_text(plan.to_yaml())
    assert load_plan(path) == plan
    assert main(["simulate", str(path), "--trace", str(trace)]) == 0
    shown = capsys.readouterr().out
    assert "closed formula" in shown
    assert "rank 1" in shown
    assert "predicted, rank 1, layers" in trace.read_text()


def test_few_prompts_take_fewer_waves() -> None:
    """Where weights are streamed and there are few prompts, a wave for each stage costs more than it brings."""
    assert few_waves(4, 8) == (1, 2, 3)
    assert few_waves(2, 8) == (1,)
    assert few_waves(4, 1000) == ()
    model = small_opt(16)
    cluster = Cluster(
        model=model,
        workload=Workload(prompt_len=64, gen_len=8, num_prompts=4),
        hosts=(several_t4(4, 12, 12, 12, 12),),
        caps=Caps(gpu_bytes=120 * MB),
        comm_device="cpu",
    )
    plan = search_stages(cluster, 4, Request())
    assert plan is not None
    assert plan.policy.num_waves < 4
    assert plan.policy.block_size <= 4


def test_a_smaller_last_block_fills_the_pipe_less() -> None:
    """Its time is not in proportion to its gpu batches."""
    policy = policy_of(ON_CPU, ON_GPU, ON_GPU, size=4, batches=4)
    whole, one_batch = (staged(policy, num_stages=4, num_waves=4, num_prompts=count).job for count in (16, 4))
    assert whole is not None
    assert one_batch is not None
    assert one_batch.decode_s > 0.7 * whole.decode_s

"""Searching pipelines: layers divided by time, shares of a host that add up, and refusals with their reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from hwprofiles.points import AttentionPoint, GroupedAttention, Rate, SizePoint
from hwprofiles.profile import HardwareProfile, LinksAtOnce, load_profile
from planner.cli import main
from planner.cluster import Cluster
from planner.host_share import link_shares, share_of
from planner.machine import Caps
from planner.model import ModelSpec
from planner.plan import Plan, load_plan
from planner.rates import make_rates
from planner.request import Request
from planner.search import search
from planner.search_stages import best_of, search_stages, stages_between
from planner.sites import sites_of
from planner.workload import Workload
from tests.planner.problems import GB, MB, emulated, small_opt, small_t4

MODEL = small_opt(num_layers=8)


def several_t4(count: int, **changes: object) -> HardwareProfile:
    """A host with T4s."""
    profile = small_t4()
    return replace(profile, gpus=profile.gpus * count, **changes)  # type: ignore[arg-type]


def cluster(
    *hosts: HardwareProfile, model: ModelSpec = MODEL, gpu: int | None = 200 * MB, cpu: int | None = None
) -> Cluster:
    """A small workload on some hosts."""
    return Cluster(
        model=model,
        workload=Workload(prompt_len=64, gen_len=8, num_prompts=48),
        hosts=hosts,
        caps=Caps(gpu_bytes=gpu, cpu_bytes=cpu),
        comm_device="cpu",
    )


def planned(found: Cluster, num_stages: int) -> Plan:
    plan = search_stages(found, num_stages, Request())
    assert plan is not None
    return plan


def counts(plan: Plan) -> list[int]:
    return [stop - first for first, stop in (stage.layers for stage in plan.stages)]


def test_a_pipeline_is_one_plan(tmp_path: Path) -> None:
    """All layers once, sums of what the stages hold, every stage within its share, the same after a round trip."""
    plan = planned(cluster(several_t4(3), cpu=6 * GB), 3)
    assert [stage.layers[0] for stage in plan.stages[1:]] == [stage.layers[1] for stage in plan.stages[:-1]]
    assert sum(counts(plan)) == MODEL.num_layers == len(plan.placement.weight_tiers)
    for stage in plan.stages:
        assert not stage.ledger.shortfalls(stage.hardware)
        assert stage.hardware.cpu_bytes + stage.hardware.headroom_bytes == 2 * GB
    for tier in ("gpu", "cpu"):
        stages = [part.ledger.bytes_of(tier, "weights") for part in plan.stages]
        assert plan.ledger.bytes_of(tier, "weights") == sum(stages)
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    loaded = load_plan(tmp_path / "plan.yaml")
    assert loaded == plan
    parts = [loaded.of_rank(rank) for rank in range(3)]
    assert [part.model.spec().has_embedding for part in parts] == [True, False, False]
    assert [part.ledger for part in parts] == [stage.ledger for stage in plan.stages]


def test_a_slower_gpu_gets_fewer_layers() -> None:
    """Layers are divided by time, not by number: the stages take about as long as each other."""
    fast = small_t4().gpus[0]
    slow = replace(
        fast,
        memory_bytes_per_s=Rate(median=fast.memory_bytes_per_s.median / 3),
        gemm={
            dtype: tuple(
                replace(point, flops_per_s=Rate(median=point.flops_per_s.median / 3)) for point in points
            )
            for dtype, points in fast.gemm.items()
        },
    )
    model = small_opt(num_layers=16)
    uneven = replace(small_t4(), gpus=(fast, slow))
    plan = planned(cluster(uneven, model=model, gpu=2 * GB), 2)
    assert counts(plan)[0] > counts(plan)[1]
    seconds = [sum(s.prediction.of(phase).seconds for phase in ("prefill", "decode")) for s in plan.stages]
    assert max(seconds) < 1.35 * min(seconds)


def test_the_head_costs_layers() -> None:
    """A large vocabulary: the last stage, which has the head, gets fewer layers than the first."""
    model = small_opt(num_layers=12, hidden_size=1024, vocab_size=160_000)
    plan = planned(cluster(several_t4(2), model=model, gpu=2 * GB), 2)
    assert counts(plan)[1] < counts(plan)[0]


def test_one_host_is_shared_out() -> None:
    """Memory, cores, disk and bandwidths of a rank are its part; all parts together are no more than the host."""
    whole = load_profile("two-core")
    shares = [site.share for site in sites_of((whole,), 2, "cpu")]
    assert sum(share.host.memory_bytes for share in shares) <= whole.host.memory_bytes
    assert sum(share.host.logical_cores for share in shares) == whole.host.logical_cores
    assert whole.disk is not None
    assert sum(share.disk.free_bytes for share in shares if share.disk) <= whole.disk.free_bytes
    one, all_of_it = make_rates(shares[0], "float32"), make_rates(whole, "float32")
    assert one.cpu_memory_bytes_per_s == pytest.approx(all_of_it.cpu_memory_bytes_per_s / 2)
    assert one.disk_read.best == pytest.approx(all_of_it.disk_read.best / 2)
    assert one.gemm.best == pytest.approx(all_of_it.gemm.best / 2)
    assert 2 * one.cpu_attention_bytes_per_s <= all_of_it.cpu_attention_bytes_per_s * 1.001
    assert one.packed is not None
    assert all_of_it.packed is not None
    assert one.packed.unpack == pytest.approx(all_of_it.packed.unpack / 2)
    assert [site.cpus for site in sites_of((whole,), 2, "cpu")] == [(0,), (1,)]


def test_further_query_heads_cost_a_ranks_threads_as_much() -> None:
    """Seconds of a value and a further head, which half as many threads take twice as long for; packed or not."""
    whole = load_profile("two-core")
    points = tuple(AttentionPoint(threads=n, bytes_per_s=Rate(median=n * 4e9)) for n in (1, 2))
    grouped = GroupedAttention(group=8, threads=2, bytes_per_s=Rate(median=2e9))
    host = replace(
        whole.host,
        attention={"float32": points},
        grouped_attention={"float32": grouped},
        packed_attention=points,
        grouped_packed_attention=grouped,
    )
    whole = replace(whole, host=host)
    one, all_of_it = (
        make_rates(profile, "float32") for profile in (sites_of((whole,), 2, "cpu")[0].share, whole)
    )
    assert (one.attention_threads, all_of_it.attention_threads) == (1, 2)
    assert one.cpu_attention_bytes_per_s == all_of_it.cpu_attention_bytes_per_s / 2
    assert one.query_head_share == pytest.approx(all_of_it.query_head_share)
    assert one.packed_query_head_share == pytest.approx(all_of_it.packed_query_head_share)
    assert all_of_it.query_head_share == pytest.approx(3 / 7)
    assert one.cpu_packed_attention_values_per_s is not None
    assert all_of_it.cpu_packed_attention_values_per_s == 2 * one.cpu_packed_attention_values_per_s


def test_links_are_shared_as_they_were_measured() -> None:
    """What so many links reach at once, divided among them; untouched where it was not measured."""
    at_once = tuple(
        LinksAtOnce(
            num_gpus=count,
            h2d_bytes_per_s=Rate(median=h2d * 1e9),
            d2h_bytes_per_s=Rate(median=d2h * 1e9),
            both_bytes_per_s=Rate(median=both * 1e9),
        )
        for count, h2d, d2h, both in ((1, 12, 12, 20), (2, 18, 24, 25))
    )
    profile = several_t4(2, links_at_once=at_once)
    assert link_shares(profile, 2) == pytest.approx((0.75, 1.0, 0.625))
    found, alone = (make_rates(share_of(profile, count, 0, ()), "float16") for count in (2, 1))
    assert found.h2d.best == pytest.approx(0.75 * alone.h2d.best)
    assert found.both_bytes_per_s == pytest.approx(0.625 * alone.both_bytes_per_s)
    assert link_shares(several_t4(2), 2) == (1.0, 1.0, 1.0)


def test_processors_are_those_of_the_gpus_node() -> None:
    """Ranks take the processors of their GPU's NUMA node, divided among those that share it."""
    profile = small_t4()
    host = replace(profile.host, logical_cores=8, numa_nodes=2, numa_cpus=((0, 1, 4, 5), (2, 3, 6, 7)))
    gpus = tuple(replace(profile.gpus[0], numa_node=node) for node in (1, 0, 1))
    sites = sites_of((replace(profile, host=host, gpus=gpus),), 3, "cpu")
    assert [site.cpus for site in sites] == [(2, 3), (0, 1, 4, 5), (6, 7)]


def test_hosts_talk_at_their_own_rate() -> None:
    """Between hosts the network's rate, within one that between its processes; without a figure it is refused."""
    slow, fast = ((SizePoint(size_bytes=2**20, bytes_per_s=Rate(median=rate)),) for rate in (1e8, 5e9))
    profile = several_t4(2, between_processes=fast, between_hosts=slow)
    sites = sites_of((profile, profile), 3, "cpu")
    assert [(site.host, site.gpu) for site in sites] == [(0, 0), (0, 1), (1, 0)]
    assert [site.share.between_processes for site in sites] == [fast, slow, slow]
    with pytest.raises(UserError, match="hwprofile measure --net"):
        sites_of((small_t4(), small_t4()), 2, "cpu")


def test_waves_fill_the_pipe() -> None:
    """Where waves cost little, there are as many as stages, and every stage is at work for much of the time."""
    tight = cluster(several_t4(4), gpu=120 * MB)
    plan = planned(replace(tight, workload=replace(tight.workload, num_prompts=384)), 4)
    assert plan.policy.num_waves >= 4
    for stage in plan.stages:
        assert stage.prediction.decode.seconds > 0.35 * plan.prediction.decode.seconds


def test_more_gpus_are_taken_where_they_help() -> None:
    """Four GPUs beat one where weights do not fit it; where all share one link, a single one is as good."""
    tight = cluster(several_t4(4), gpu=120 * MB)
    from_one = search(tight.staged(1).even(0, 1), Request())
    assert from_one is not None
    four = planned(tight, 4)
    assert four.throughput_tokens_per_s > 1.5 * from_one.throughput_tokens_per_s
    assert best_of([from_one, four]) is four
    twin = replace(four, stages=four.stages[:2])
    assert best_of([four, twin]) is twin


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--stages", "9"], "9 stages, small has 8 layers"),
        (["--hw", "t4-host", "--stages", "2"], "2 stages need a GPU each, t4-host has 1"),
        (["--stages", "none"], "--stages is 'none'"),
        (["--stages", "0"], "--stages is '0'"),
        (["--stages", "4", "--cpu-mem", "1GB"], "stage 3 of 4, with 1/4 of its host: small does not fit"),
        (["--stages", "2", "--frontier", "f.html"], "--frontier draws plans without stages"),
        (["--stages", "1", "--hosts", "two-core"], "1 stages on 2 hosts"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_reason(
    flags: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and exit status 2."""
    (tmp_path / "small.json").write_text(json.dumps(dict(MODEL.config) | {"dtype": "float32"}))
    words = ["search", "--model", str(tmp_path / "small.json"), "--hw", "two-core", "--prompt-len", "64"]
    assert main([*words, "--gen-len", "8", *flags]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("cores", [1, 3])
def test_the_best_number_of_stages(
    cores: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--stages auto` compares what each number gives by itself, whether they are searched at once or in turn."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    (tmp_path / "small.json").write_text(json.dumps(dict(MODEL.config)))
    (tmp_path / "hw.yaml").write_text(several_t4(2, name="hw").to_yaml())
    words = (
        f"search --model {tmp_path}/small.json --hw {tmp_path}/hw.yaml --gpu-mem 500MB --prompt-len 64 --json"
    )
    found = {}
    for stages in ("1", "2", "auto"):
        output = tmp_path / f"{stages}.yaml"
        assert main([*words.split(), "--gen-len", "8", "--stages", stages, "-o", str(output)]) == 0
        found[stages] = load_plan(output)
    by_itself = [found["1"], found["2"]]
    assert found["auto"].throughput_tokens_per_s == best_of(by_itself).throughput_tokens_per_s
    capsys.readouterr()


def test_a_given_policy_on_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`planner estimate --stages` puts FlexGen's percents on every stage, in waves."""
    profile = tmp_path / "hw.yaml"
    whole = emulated()
    gpu = replace(whole.gpus[0], memory_bytes=2 * GB)
    profile.write_text(replace(whole, name="hw", gpus=(gpu,)).to_yaml())
    words = (
        "estimate --model opt-125m --dtype float32 --prompt-len 64 --gen-len 8 --percent 20 80 0 100 0 100"
    )
    sizes = "--gpu-batch-size 4 --num-gpu-batches 6 --stages 3"
    output = tmp_path / "plan.yaml"
    assert main([*words.split(), *sizes.split(), "--hw", str(profile), "-o", str(output)]) == 0
    plan = load_plan(output)
    assert [stage.policy.num_waves for stage in plan.stages] == [3, 3, 3]
    assert sum(counts(plan)) == 12
    assert "3 stages, 3 waves" in capsys.readouterr().out
    assert main([*words.split(), *sizes.split(), "--hw", str(profile), "--cpu-mem", "900MB"]) == 2
    assert "stage 0 of 3: cpu tier needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 10.0, 2: 18.0, 4: 30.0}, []),
        ({1: 10.0, 2: 18.0, 4: 20.0}, [3]),
        ({1: 10.0, 2: 18.0}, [3]),
        ({1: 10.0, 4: 20.0}, []),
        ({1: 10.0, 2: 18.0, 3: 25.0, 4: 20.0}, []),
    ],
)
def test_three_stages_are_tried_where_four_bring_little(rates: dict[int, float], expected: list[int]) -> None:
    """On four GPUs; on two there are no three."""
    plan = planned(cluster(several_t4(2)), 2)
    plans = {
        count: replace(plan, job=None, prediction=replace(plan.prediction, throughput_tokens_per_s=rate))
        for count, rate in rates.items()
    }
    assert stages_between(cluster(several_t4(4)), plans) == expected
    assert stages_between(cluster(several_t4(2)), plans) == []

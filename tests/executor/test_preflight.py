"""Preflight: a plan that does not fit what is free now is refused with numbers, before anything happens."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from executor import preflight
from executor.memory import resident_bytes
from hwprofiles.errors import UserError
from hwprofiles.units import GIB, MIB
from planner.ledger import Entry, Ledger, make_ledger
from planner.model import ModelSpec, load_model, spec_from_config
from planner.plan import Plan
from tests.executor.tiny import make_plan

CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with plenty of everything, whatever the test runs on."""
    available(monkeypatch, 100 * GIB)
    monkeypatch.setattr(preflight, "memory_headroom_bytes", lambda: None)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    """A model of 250 MB."""
    return load_model("opt-125m")


def available(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Pretend MemAvailable."""
    memory = SimpleNamespace(available=num_bytes, total=200 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def on_host(plan: Plan) -> int:
    """The plan's host bytes: both tiers where the gpu is emulated."""
    return plan.ledger.peak_bytes("cpu") + plan.ledger.peak_bytes("gpu")


def with_process(plan: Plan, process_bytes: int) -> Plan:
    """The plan on a machine whose processes take this much."""
    hardware = replace(plan.hardware, process_bytes=process_bytes)
    ledger = make_ledger(plan.model.spec(), plan.workload, plan.policy, plan.placement, hardware)
    return replace(plan, hardware=hardware, ledger=ledger)


def test_a_plan_from_before_windows_had_caches_of_their_own(tmp_path: Path) -> None:
    """Its ledger counts every token: it is refused with both sums, and told to be searched for again."""
    config = {"model_type": "mistral", "hidden_size": 256, "num_hidden_layers": 2}
    old, new = (spec_from_config("m", {**config, "sliding_window": window}) for window in (None, 7))
    rows = (0, 4, 0, 0, 0)
    plan = replace(make_plan(new, cache=rows), ledger=make_plan(old, cache=rows).ledger)
    with pytest.raises(
        UserError, match=r"its ledger says .*, its placement takes .*: run planner search again"
    ):
        preflight.check(plan, offload_dir=tmp_path, device=CPU)


def test_a_plan_that_fits(spec: ModelSpec, tmp_path: Path) -> None:
    """Nothing happens, and nothing is left in the offload directory."""
    preflight.check(make_plan(spec, weights="gcd"), offload_dir=tmp_path, device=CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["MemAvailable", "control group"])
def test_host_memory(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """The tighter of MemAvailable and the control group binds; an emulated gpu tier counts as host memory."""
    plan = make_plan(spec, weights="gc")
    needed = on_host(plan)
    for free, fits in ((needed + 65 * MIB, True), (needed - MIB, False)):
        if source == "MemAvailable":
            available(monkeypatch, free)
        else:
            monkeypatch.setattr(preflight, "memory_headroom_bytes", lambda free=free: free)
        if fits:
            preflight.check(plan, offload_dir=tmp_path, device=CPU)
            continue
        with pytest.raises(
            UserError, match=rf"cpu and emulated gpu tiers need .* more .*\({source}\).*--cpu-mem"
        ):
            preflight.check(plan, offload_dir=tmp_path, device=CPU)


def test_what_is_resident_already_is_not_asked_for_again(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the process's own entry, what this process occupies now is no longer to come."""
    plan = with_process(make_plan(spec, weights="gc"), resident_bytes() + 50 * MIB)
    still_to_come = on_host(plan) - resident_bytes()
    available(monkeypatch, still_to_come + 80 * MIB)  # loading has buffers of its own
    preflight.check(plan, offload_dir=tmp_path, device=CPU)
    available(monkeypatch, still_to_come - 20 * MIB)
    with pytest.raises(UserError, match="more host memory"):
        preflight.check(plan, offload_dir=tmp_path, device=CPU)


def test_what_the_kernel_keeps_of_registered_memory_is_asked_for_too(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of the cpu tier: refused where it is missing, and named."""
    plan = make_plan(spec, weights="c")
    plan = replace(plan, hardware=replace(plan.hardware, kernel_share=0.1))
    kept = plan.ledger.peak_bytes("cpu") // 10
    available(monkeypatch, on_host(plan) + kept + 65 * MIB)
    preflight.check(plan, offload_dir=tmp_path, device=CPU)
    available(monkeypatch, on_host(plan) + kept - MIB)
    with pytest.raises(UserError, match="for the kernel, which keeps track of it"):
        preflight.check(plan, offload_dir=tmp_path, device=CPU)


def test_free_disk(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needed and free bytes of the offload directory are named."""
    plan = make_plan(spec, weights="d")
    needed = plan.ledger.peak_bytes("disk")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB, 0, needed - 1))
    with pytest.raises(UserError, match=rf"disk tier needs .* {tmp_path} has .* free; .*--offload-dir"):
        preflight.check(plan, offload_dir=tmp_path, device=CPU)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB, 0, needed))
    preflight.check(plan, offload_dir=tmp_path, device=CPU)


def test_missing_offload_directory(spec: ModelSpec, tmp_path: Path) -> None:
    """Only a plan with bytes on disk needs it."""
    with pytest.raises(UserError, match="nowhere does not exist; create it"):
        preflight.check(make_plan(spec, weights="d"), offload_dir=tmp_path / "nowhere", device=CPU)
    preflight.check(make_plan(spec, weights="c"), offload_dir=tmp_path / "nowhere", device=CPU)


def test_files_in_memory_count_as_memory(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tmpfs the disk tier is host memory too."""
    plan = make_plan(spec, weights="dc")
    available(monkeypatch, on_host(plan) + 65 * MIB)
    monkeypatch.setattr(
        psutil, "disk_partitions", lambda all: [SimpleNamespace(mountpoint="/", fstype="ext4")]
    )
    preflight.check(plan, offload_dir=tmp_path, device=CPU)
    mounts = [
        SimpleNamespace(mountpoint=place, fstype=kind)
        for place, kind in (("/", "ext4"), (str(tmp_path), "tmpfs"))
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    with pytest.raises(UserError, match="for files on tmpfs"):
        preflight.check(plan, offload_dir=tmp_path, device=CPU)


def test_a_plan_over_its_own_limits(spec: ModelSpec, tmp_path: Path) -> None:
    """The plan's own hardware limits hold too, whatever is free."""
    plan = make_plan(spec, weights="c")
    tight = replace(plan, hardware=replace(plan.hardware, cpu_bytes=MIB))
    with pytest.raises(UserError, match=r"cpu tier needs .* its limit is 1\.0 MiB: short by"):
        preflight.check(tight, offload_dir=tmp_path, device=CPU)


def test_an_edited_plan(spec: ModelSpec, tmp_path: Path) -> None:
    """A ledger that is not the placement's is refused: the executor would allocate something else."""
    plan = make_plan(spec, weights="c")
    extra = Entry(tier="cpu", purpose="weights", prefill_bytes=GIB, decode_bytes=GIB, arena=True)
    edited = replace(plan, ledger=Ledger(entries=(*plan.ledger.entries, extra)))
    with pytest.raises(UserError, match=r"its placement takes .* run planner search again"):
        preflight.check(edited, offload_dir=tmp_path, device=CPU)


@pytest.mark.gpu
def test_gpu_memory(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free device memory is asked of CUDA."""
    device = torch.device("cuda", 0)
    plan = make_plan(spec, weights="g", emulated=False)
    preflight.check(plan, offload_dir=tmp_path, device=device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (MIB, GIB))
    with pytest.raises(UserError, match=r"gpu tier needs .* cuda:0 has 1\.0 MiB free .*--gpu-mem"):
        preflight.check(plan, offload_dir=tmp_path, device=device)

"""What a process holds beyond what it asks for: measured on this machine, and read back from profiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml

from hwprofiles.errors import UserError
from hwprofiles.host import memory_limits, occupied_bytes
from hwprofiles.points import NO_MARGINS, Kernels, Margins
from hwprofiles.probes import process
from hwprofiles.probes.libraries import load_kernels
from hwprofiles.probes.process import process_cost
from hwprofiles.probes.tensors import allocations
from hwprofiles.probes.weighed import Weighed
from hwprofiles.profile import HardwareProfile, load_profile, shipped_names
from hwprofiles.units import MIB
from hwprofiles.yaml_io import from_plain

CPU = torch.device("cpu")


def test_a_fresh_process_is_weighed() -> None:
    """A real one; where there is no GPU nothing is of one."""
    cost = process_cost(0)
    assert cost.resident_bytes > 100 * MIB
    assert cost.context_bytes == ()
    assert cost.spread_bytes == 0
    assert cost.margins == NO_MARGINS


def test_several_processes_become_one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle one's sizes, the spread between them, and of all else the most; the first one compiles."""

    def weighed(resident: int, *kinds: int) -> Weighed:
        context, allocator, fragmentation = kinds
        margins = Margins(context_bytes=context, allocator_bytes=allocator, fragmentation_bytes=fragmentation)
        kernels: dict[Kernels, int] = {"opt": context, "rotary": 2 * context, "experts": 3 * context}
        return Weighed(resident_bytes=resident, margins=margins, kernels_host_bytes=kernels)

    runs = iter([
        (weighed(150, 90, 80, 70), (900, 900)),
        (weighed(100, 7, 1, 30), (500, 510)),
        (weighed(109, 9, 2, 20), (505, 500)),
        (weighed(103, 8, 0, 25), (502, 505)),
    ])  # fmt: skip
    monkeypatch.setattr(process, "_weigh", lambda *_: next(runs))
    cost = process_cost(2, num_runs=4)
    assert (cost.resident_bytes, cost.context_bytes, cost.spread_bytes) == (103, (505, 510), 9)
    assert cost.margins == Margins(context_bytes=9, allocator_bytes=2, fragmentation_bytes=30)
    assert cost.kernels_host_bytes == {"opt": 8, "rotary": 16, "experts": 24, "compiling": 150 - 103}


def test_layers_hold_what_they_say() -> None:
    """Against the sum over all tensors there are: the peak is the MLP's, and a layer leaves nothing but its result."""
    held = list(allocations(CPU, torch.float32, 8, (4, 2)))
    row = 8 * 4
    assert held[:5] == [4 * row, 8 * row, 12 * row, 16 * row, 20 * row]
    assert max(held) == (1 + 4 + 4) * 4 * row
    assert held[10] == 2 * row  # the second layer begins with its own hidden states alone


def test_every_kernel_that_is_loaded_on_a_gpu_runs() -> None:
    """The same calls on the CPU: none of them is misspelt for this torch."""
    load_kernels(CPU, rows=(1, 8))


def test_others_hold_less_than_all() -> None:
    """Of what this process may use, some is held by the kernel at least, and some is left."""
    assert 0 <= occupied_bytes() < min(memory_limits().values())


@pytest.mark.parametrize("name", shipped_names())
def test_profiles_from_before_margins_load(name: str) -> None:
    """A file without the keys reads as not measured."""
    data = yaml.safe_load(load_profile(name).to_yaml())
    del data["host"]["process_spread_bytes"], data["host"]["occupied_bytes"]
    for gpu in data["gpus"]:
        del gpu["margins"]
    profile = from_plain(data, HardwareProfile, name)
    assert profile.host.process_spread_bytes is None
    assert all(gpu.margins is None for gpu in profile.gpus)
    assert profile.host.occupied_bytes is None


def test_negative_bytes_are_refused() -> None:
    """By name."""
    with pytest.raises(UserError, match="margins"):
        Margins(context_bytes=-1, allocator_bytes=0, fragmentation_bytes=0)
    for name in ("occupied_bytes", "process_spread_bytes"):
        with pytest.raises(UserError, match=name):
            replace(load_profile("two-core").host, **{name: -1})


def test_what_the_host_grants_leaves_out_the_cap() -> None:
    """A cap of the measurement says nothing of what others may use."""
    host = load_profile("two-core").host
    capped = replace(host, memory_limits_bytes={"mem_total": 100, "cgroup": 80, "cap": 50}, memory_bytes=50)
    assert capped.granted_bytes == 80

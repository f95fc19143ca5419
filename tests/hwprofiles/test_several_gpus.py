"""Links of several GPUs at once: who is at work with whom, and what is made of the rates; copies are in host memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch

from hwprofiles.budget import Pace
from hwprofiles.points import Rate
from hwprofiles.probes import several_gpus
from hwprofiles.probes.several_gpus import gpu_to_gpu, links_at_once, num_points, totals_by_count
from hwprofiles.probes.timing import Worker
from hwprofiles.profile import load_profile
from hwprofiles.tables import figures
from hwprofiles.units import KIB

CPU = torch.device("cpu")
LINK = 50.0
HOST = 120.0


def pace() -> tuple[Pace, list[str]]:
    labels: list[str] = []
    return Pace(0.2, 100, lambda label, *_: labels.append(label)), labels


def test_totals_of_links_that_share_a_host() -> None:
    """For 1 to 4 links each way and both: exactly those run at once, and what they reach is added up."""
    workers = [{way: Worker(operation=lambda: None, amount=1.0) for way in ("h2d", "d2h")} for _ in range(4)]
    teams: list[set[str]] = []

    def together(team: Mapping[str, Worker], _: float) -> dict[str, Rate]:
        teams.append(set(team))
        assert all(worker is workers[int(name[-1])][name[:3]] for name, worker in team.items())
        each = min(LINK, HOST / len(team))
        return {name: Rate(median=each, spread=0.01 * (n + 1)) for n, name in enumerate(team)}

    given, labels = pace()
    found = totals_by_count(workers, given, together)
    assert [each.num_gpus for each in found] == [1, 2, 3, 4]
    assert [each.h2d_bytes_per_s.median for each in found] == pytest.approx([50, 100, 120, 120])
    assert [each.d2h_bytes_per_s.median for each in found] == pytest.approx([50, 100, 120, 120])
    assert [each.both_bytes_per_s.median for each in found] == pytest.approx([100, 120, 120, 120])
    assert found[3].both_bytes_per_s.spread == pytest.approx(0.08), "the least sure of them"
    assert teams[0] == {"h2d 0"}
    assert teams[5] == {"h2d 0", "d2h 0", "h2d 1", "d2h 1"}
    assert len(labels) == len(teams) == 12


def test_copies_are_made_and_timed() -> None:
    """Arenas in host memory stand for the GPUs: every figure is there, and as many points as were announced."""
    given, labels = pace()
    devices = [CPU] * 3
    before = os.sched_getaffinity(0)
    found = links_at_once(devices, [(0,), (), (10**6,)], 64 * KIB, given)
    rate = gpu_to_gpu(devices, 64 * KIB, given)
    assert len(labels) == num_points(3)
    assert num_points(1) == num_points(0) == 0
    assert os.sched_getaffinity(0) == before
    figures_of = [
        figure.median
        for each in found
        for figure in (each.h2d_bytes_per_s, each.d2h_bytes_per_s, each.both_bytes_per_s)
    ]
    assert all(figure > 0 for figure in [*figures_of, rate.median])


def test_the_slowest_pair_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline's messages pass between all neighbours."""
    rates = iter((300.0, 40.0, 300.0))
    monkeypatch.setattr(several_gpus, "measured_rate", lambda *_: Rate(median=next(rates)))
    assert gpu_to_gpu([CPU] * 4, KIB, pace()[0]).median == 40.0


def test_buffers_lie_beside_their_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are touched by one thread, on the processors named for the GPU, which are then free again."""
    bound: list[tuple[set[int], int]] = []

    @contextmanager
    def ends(*_: object) -> Iterator[None]:
        bound.append((os.sched_getaffinity(0), torch.get_num_threads()))
        yield

    monkeypatch.setattr(several_gpus, "link_ends", ends)
    monkeypatch.setattr(several_gpus, "both_ways", lambda *_: {})
    monkeypatch.setattr(several_gpus, "totals_by_count", lambda *_: ())
    allowed = sorted(os.sched_getaffinity(0))
    links_at_once([CPU, CPU], [(len(allowed) - 1,), ()], KIB, pace()[0])
    assert bound == [({allowed[-1]}, 1), (set(allowed), 1)]


def test_figures_are_shown() -> None:
    """`hwprofile show` has them."""
    labels = [figure.label for figure in figures(load_profile("h200x4-host"))]
    assert {"h2d, 4 in all", "both ways, 2 in all", "from one to the next"} <= set(labels)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus() -> None:
    """Real links: both together bring no less than one of them, and less than twice as much and a bit."""
    devices = [torch.device("cuda", index) for index in range(2)]
    size, given = 64 * KIB * KIB, Pace(5.0, num_points(2), lambda *_: None)
    one, two = links_at_once(devices, [(), ()], size, given)
    for name in ("h2d", "d2h", "both"):
        alone, together = (getattr(each, f"{name}_bytes_per_s").median for each in (one, two))
        assert 0.8 * alone < together < 2.3 * alone
    assert gpu_to_gpu(devices, size, given).median > 1e9

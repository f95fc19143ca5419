"""Contention: what counts of several visits, some of which a neighbour disturbed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from hwprofiles.budget import Pace
from hwprofiles.points import Rate
from hwprofiles.probes import concurrent
from hwprofiles.probes.concurrent import Contention, contention, contention_points
from hwprofiles.probes.disk import scratch_file
from hwprofiles.probes.timing import Worker
from hwprofiles.profile import BesideH2d, Concurrent
from hwprofiles.units import MIB

QUIET = {"attention": 30e9, "disk_read": 3e9, "h2d": 12e9, "d2h": 10e9}
SPREAD = 0.01
NUM_VISITS = 3
Kept = dict[str, float]
"""What parts keep of their quiet rates."""


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """For the next visit; it moves nothing and takes no time."""
    kept: Kept = {}

    def at_once(workers: Mapping[str, Worker], slice_s: float) -> dict[str, Rate]:
        return {part: Rate(median=QUIET[part] * kept.get(part, 1.0), spread=SPREAD) for part in workers}

    monkeypatch.setattr(concurrent, "at_once", at_once)
    return kept


@pytest.fixture(params=[False, True], ids=["no gpu", "emulated gpu"])
def everything(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Contention]:
    """On a host without a GPU and with an emulated one; it takes as many points as it says."""
    has_gpu: bool = request.param
    pace = Pace(1.0, contention_points(has_gpu), lambda *_: None)
    with (
        scratch_file(tmp_path, 4 * MIB) as file,
        contention(
            device=torch.device("cpu") if has_gpu else None,
            link_bytes=MIB,
            attention=("float32", 2),
            working_set_bytes=4 * MIB,
            file=file,
            pace=pace,
            num_visits=NUM_VISITS,
        ) as made,
    ):
        yield made
    assert pace.num_done == pace.num_points


def medians(found: Concurrent) -> list[tuple[float, float]]:
    """Of every figure that there is beside its quiet rate."""
    beside: BesideH2d | None = found.attention_beside_h2d
    pairs = [
        ("attention", found.cpu_attention_bytes_per_s),
        ("disk_read", found.disk_read_bytes_per_s),
        ("h2d", found.h2d_bytes_per_s),
        ("d2h", found.d2h_bytes_per_s),
        ("attention", beside and beside.attention_bytes_per_s),
        ("h2d", beside and beside.h2d_bytes_per_s),
    ]
    return [(rate.median, QUIET[part]) for part, rate in pairs if rate]


@pytest.mark.parametrize("disturbed", range(NUM_VISITS))
def test_a_disturbed_visit_moves_no_figure(everything: Contention, kept: Kept, disturbed: int) -> None:
    """Whichever it is, all figures are those of a quiet visit; the spread says how far visits were apart."""
    for visit in range(NUM_VISITS):
        kept.update(dict.fromkeys(QUIET, 0.4 if visit == disturbed else 1.0))
        everything.visit()
    found = everything.figures()
    assert all(median == quiet for median, quiet in medians(found))
    assert found.cpu_attention_bytes_per_s.spread == pytest.approx(0.15)
    if found.attention_beside_h2d:
        assert found.attention_beside_h2d.h2d_bytes_per_s.spread == pytest.approx(0.15)


def test_parts_may_be_disturbed_in_different_visits(everything: Contention, kept: Kept) -> None:
    """The disk in the first one and the cores in the last one: neither figure moves."""
    for disturbed in ("disk_read", "h2d", "attention"):
        kept.update({part: 0.4 if part == disturbed else 1.0 for part in QUIET})
        everything.visit()
    assert all(median == quiet for median, quiet in medians(everything.figures()))


def test_what_one_part_takes_from_another_is_counted_once(everything: Contention, kept: Kept) -> None:
    """Where the disk has the more the less attention has, both figures are of the same visit."""
    for share in (0.3, 0.8, 0.6):
        kept.update(attention=share, disk_read=1.0 - share)
        everything.visit()
    found = everything.figures()
    assert found.cpu_attention_bytes_per_s.median == pytest.approx(0.6 * QUIET["attention"])
    assert found.disk_read_bytes_per_s.median == pytest.approx(0.4 * QUIET["disk_read"])


def test_quiet_visits_leave_the_spread_of_one(everything: Contention, kept: Kept) -> None:
    """Visits that agree are no more apart than one is in itself; what the machine lacks is null."""
    for _ in range(NUM_VISITS):
        everything.visit()
    found = everything.figures()
    assert found.disk_read_bytes_per_s == Rate(median=QUIET["disk_read"], spread=SPREAD)
    assert (found.h2d_bytes_per_s is None) == (found.attention_beside_h2d is None)

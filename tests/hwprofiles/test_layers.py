"""The probes of layers: what they count, and that all of them answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hwprofiles.budget import Pace
from hwprofiles.native_attention import find_attention
from hwprofiles.packing import quantised_bytes
from hwprofiles.points import Rate
from hwprofiles.probes import attention
from hwprofiles.probes.attention import (
    Attention,
    AttentionTimes,
    attention_memory,
    attention_points,
    attention_worker,
)
from hwprofiles.probes.layers import (
    FAMILIES,
    LAYER_POINTS,
    LayerTimes,
    decoder,
    prompt_attention_rates,
    sweep_all,
    sweep_core,
)
from hwprofiles.probes.packed import PACKED_POINTS, measure_packed
from hwprofiles.probes.visits import Visits
from hwprofiles.units import MIB
from tests.dispatched import Seen

CPU = torch.device("cpu")


def operations(family: str, num_layers: int) -> int:
    """Of one token's pass."""
    model = decoder(family, num_layers, CPU)
    with torch.no_grad(), Seen() as counted:
        model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False)
    return counted.operations


@pytest.mark.parametrize("family", FAMILIES)
def test_the_operations_are_those_of_the_layers(family: str) -> None:
    """The numbers beside the families are what the dispatcher counts."""
    assert operations(family, 3) - operations(family, 2) == FAMILIES[family][0]


@pytest.mark.parametrize("sweep", [sweep_all(8 * MIB), sweep_core()], ids=["all cores", "one core"])
def test_more_operations_take_longer(sweep: Callable[[], object]) -> None:
    """A point for each family, and a rate of attention for each dtype."""
    pace = Pace(2.0, LAYER_POINTS + 3, lambda *_: None)
    times = LayerTimes(CPU, sweep, Visits(pace, 1))
    times.visit()
    few, many = sorted(times.points(), key=lambda point: point.operations)
    assert many.seconds.median > few.seconds.median > 0
    assert set(prompt_attention_rates(CPU, pace.next)) == {"float32", "float16", "bfloat16"}


def test_visits_at_several_times_are_averaged() -> None:
    """A layer's seconds after one visit, and half-way between two."""
    times = LayerTimes(CPU, sweep_core(), Visits(Pace(1.0, LAYER_POINTS, lambda *_: None), 2))
    times.visit()
    first = times.points()
    times.visit()
    for one, both in zip(first, times.points(), strict=True):
        assert both.operations == one.operations
        assert both.seconds.median < 2 * one.seconds.median
        assert both.seconds.median > one.seconds.median / 2


def measured(times: AttentionTimes, memory: torch.Tensor) -> Attention:
    """After two visits."""
    for _ in range(2):
        times.visit(memory)
    return times.figures()


def test_query_heads_that_share_keys_take_longer() -> None:
    """Attention of eight query heads to one head of K and V reads its bytes no faster than that of one to one."""
    memory, pace = attention_memory(8 * MIB), Pace(4.0, attention_points(1), lambda *_: None)
    found = measured(AttentionTimes((1,), 1, Visits(pace, 2)), memory)
    assert pace.num_done == pace.num_points - (0 if found.packed else 2)
    for dtype, grouped in found.grouped.items():
        assert (grouped.group, grouped.threads) == (8, 1)
        assert grouped.bytes_per_s.median < 1.2 * found.curves[dtype][0].bytes_per_s.median


@pytest.mark.skipif(find_attention() is None, reason="needs a C compiler")
def test_packed_attention_reads_fewer_bytes_for_a_value() -> None:
    """A point for each number of threads, in packed bytes, and one for a group of query heads."""
    memory, threads = attention_memory(8 * MIB), (1, 2)
    pace = Pace(6.0, attention_points(2), lambda *_: None)
    found = measured(AttentionTimes(threads, 2, Visits(pace, 2)), memory)
    assert tuple(point.threads for point in found.packed) == threads
    assert found.grouped_packed is not None
    assert found.grouped_packed.bytes_per_s.median < 1.2 * found.packed[-1].bytes_per_s.median
    assert attention_worker("packed", 1, memory).amount % (2 * 512 * quantised_bytes(32 * 128)) == 0


def test_a_point_that_was_disturbed_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two visits to every point, and another one where fewer threads were clearly faster; the best of them is kept."""
    visits: list[tuple[str, int]] = []

    def rate(kind: str, threads: int, memory: object, slice_s: float, group: int = 1) -> Rate:
        visits.append((kind, threads))
        is_disturbed = (kind, threads) == ("bfloat16", 4) and visits.count((kind, threads)) < 3
        return Rate(median=1e9 if is_disturbed else threads * 1e9)

    monkeypatch.setattr(attention, "_rate", rate)
    pace = Pace(1.0, attention_points(3), lambda *_: None)
    found = measured(AttentionTimes((1, 2, 4), 2, Visits(pace, 2)), attention_memory(MIB))
    assert [point.bytes_per_s.median for point in found.curves["bfloat16"]] == [1e9, 2e9, 4e9]
    assert visits.count(("bfloat16", 4)) == 3
    assert visits.count(("float32", 4)) == 2


def test_attention_is_measured_in_little_memory() -> None:
    """Of one sequence at least, though less was asked for."""
    memory = attention_memory(MIB)
    for dtype in ("float32", "float16"):
        worker = attention_worker(dtype, 1, memory)
        assert 0 < worker.amount <= memory.nbytes
        for _ in range(3):
            worker.operation()


def test_packed_values_have_their_rates() -> None:
    """Every figure of a host; nothing is issued to a GPU."""
    packed = measure_packed(CPU, Pace(1.0, PACKED_POINTS["cpu"], lambda *_: None).next)
    assert packed.unpack_values_per_s.median > 0
    assert packed.pack_values_per_s.median > 0
    assert packed.attend_values_per_s is None
    assert packed.issue_s is None

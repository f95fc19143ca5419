"""The schedule of one stage: no slot is taken before all that used it is done, and the CPU attends beside the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule import Task, TaskKind, tasks
from planner.shape import BatchShape, LayerShape, Shape


def batches(tier: str) -> st.SearchStrategy[BatchShape]:
    """Gpu batches of all kinds; the CPU attends beside a GPU only."""
    some = st.booleans()
    attended = some if tier == "gpu" else st.just(False)
    return st.builds(
        lambda far, disk, loaded, attended, near, moves, deep: BatchShape(
            stored_cache=far or disk or loaded or attended,
            disk_cache=disk,
            loaded_cache=loaded,
            attended_cache=attended,
            near_cache=near or loaded or not attended,
            stored_activation=moves or deep,
            disk_activation=deep,
        ),
        some,
        some,
        some,
        attended,
        some,
        some,
        some,
    )


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Of one stage, with one wave."""
    tier = draw(st.sampled_from(("gpu", "cpu")))
    num_batches = draw(st.integers(1, 4))
    layer = st.builds(
        LayerShape,
        on_link=st.booleans() if tier == "gpu" else st.just(False),
        on_disk=st.booleans() if tier == "cpu" else st.just(False),
        num_parts=st.integers(1, 2),
    )
    return Shape(
        compute_tier=tier,
        layers=tuple(draw(st.lists(layer, min_size=1, max_size=4))),
        batches=tuple(draw(st.lists(batches(tier), min_size=num_batches, max_size=num_batches))),
        weight_slots=draw(st.integers(2, 3)),
        cache_slots=draw(st.integers(2, 3)),
        waves=(tuple(range(num_batches)),),
    )


def happen_before(yielded: Sequence[Task]) -> dict[int, set[int]]:
    """Of each task those that are done when it begins: what it waits for, and what its lane did before."""
    before: dict[int, set[int]] = {}
    last: dict[str, int] = {}
    for task in yielded:
        near = (*task.deps, *((last[task.resource],) if task.resource in last else ()))
        before[task.id] = set(near).union(*(before[each] for each in near))
        last[task.resource] = task.id
    return before


def users(yielded: Sequence[Task]) -> Iterator[tuple[str, int, tuple[int, ...], Task]]:
    """(kind of slot, slot, visit, task) of all that touch a slot."""
    touched = {
        TaskKind.LOAD_WEIGHT: ("weight",),
        TaskKind.LOAD_CACHE: ("cache",),
        TaskKind.STORE_CACHE: ("cache",),
        TaskKind.ATTEND: ("cache",),
        TaskKind.LOAD_ACTIVATION: ("activation",),
        TaskKind.STORE_ACTIVATION: ("activation",),
        TaskKind.COMPUTE: ("weight", "cache", "activation"),
    }
    for task in yielded:
        for name in touched[task.kind]:
            if name == "cache" and task.kind is TaskKind.COMPUTE and 0 < task.part == task.num_parts - 1:
                continue  # K and V are written, and the near rows attended to, in the parts before
            if (slot := getattr(task.slots, name)) >= 0:
                visit = (task.i, task.j) if name == "weight" else (task.i, task.j, task.k)
                yield name, slot, visit, task


@settings(max_examples=150)
@given(shape=shapes())
def test_no_slot_is_taken_before_it_is_free(shape: Shape) -> None:
    """All that a visit does in a slot comes after all that the visit before it did there."""
    yielded = list(tasks(shape, 3))
    before = happen_before(yielded)
    visits: dict[tuple[str, int], dict[tuple[int, ...], list[int]]] = {}
    for name, slot, visit, task in users(yielded):
        visits.setdefault((name, slot), {}).setdefault(visit, []).append(task.id)
    for of_slot in visits.values():
        for earlier, later in pairwise(of_slot.values()):
            assert all(before[task].issuperset(earlier) for task in later)


@settings(max_examples=150)
@given(shape=shapes())
def test_the_cpu_attends_between_the_parts(shape: Shape) -> None:
    """Every attended visit has two parts of compute and attention between them, or three where the GPU attends too.

    The GPU's own attention waits for nothing but the first part; all other visits have one compute task.
    """
    yielded = list(tasks(shape, 3))
    before = happen_before(yielded)
    by_visit: dict[tuple[int, int, int], list[Task]] = {}
    for task in yielded:
        if task.kind in (TaskKind.COMPUTE, TaskKind.ATTEND):
            by_visit.setdefault((task.i, task.j, task.k), []).append(task)
    for (i, j, k), found in by_visit.items():
        if i and 0 <= j < len(shape.layers) and shape.batches[k].attended_cache:
            first, attend, *near, last = found
            num_parts = 2 + shape.batches[k].near_cache
            kinds = [(task.kind, task.part, task.num_parts) for task in (first, attend, last)]
            assert kinds[0] == (TaskKind.COMPUTE, 0, num_parts)
            assert kinds[1] == (TaskKind.ATTEND, 0, 1)
            assert kinds[2] == (TaskKind.COMPUTE, num_parts - 1, num_parts)
            assert [(task.part, task.deps) for task in near] == [(1, (first.id,))] * (num_parts - 2)
            assert first.id in before[attend.id]
            assert attend.id in before[last.id]
        else:
            assert [(task.kind, task.num_parts) for task in found] == [(TaskKind.COMPUTE, 1)]


def test_the_next_gpu_batch_is_begun_while_the_cpu_attends() -> None:
    """Of four gpu batches that the CPU attends for, each is begun before the one before it goes on."""
    batch = BatchShape(
        stored_cache=True,
        disk_cache=False,
        loaded_cache=False,
        attended_cache=True,
        near_cache=False,
        stored_activation=False,
        disk_activation=False,
    )
    shape = Shape(
        compute_tier="gpu",
        layers=(LayerShape(True, False, 1),) * 2,
        batches=(batch,) * 4,
        weight_slots=2,
        cache_slots=2,
        waves=((0, 1, 2, 3),),
    )
    layer = [task for task in tasks(shape, 2) if (task.i, task.j) == (1, 0) and task.resource == "gpu"]
    order = [(task.k, task.part) for task in layer]
    assert order == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (3, 0), (2, 1), (3, 1)]

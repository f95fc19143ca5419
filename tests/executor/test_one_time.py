"""What only the first block takes, told from when its layers and tokens were done."""

from __future__ import annotations

import pytest

from executor.one_time import OneTime


def times(layers: list[float], tokens: list[float]) -> OneTime:
    """Layers, the head among them, and tokens that took so many seconds each, from 10 s on; two gpu batches."""
    found, now = OneTime(), 10.0
    found.layer_done(-1, 10.1)
    for j, seconds in enumerate(layers):
        now += seconds
        found.layer_done(j, now - 0.1)
        found.layer_done(j, now)
    for i, seconds in enumerate([0.0, *tokens]):
        now += seconds
        found.token_done(i, now)
    return found


@pytest.mark.parametrize(
    ("layers", "tokens", "loads_s", "expected"),
    [
        ([5.0, 1.0, 1.2, 0.5], [3.0, 1.0, 1.1], 0.0, (3.8, 1.9)),
        ([5.0, 1.0, 1.2, 0.5], [1.0, 1.0, 1.1], 6.0, (1.8, 0.0)),
        ([1.1, 1.0, 1.2, 0.5], [0.9, 1.0], 0.0, (0.0, 0.0)),
        ([5.0, 0.5], [3.0], 0.0, (0.0, 0.0)),
        ([5.0, 1.0, 1.0], [], 0.0, (4.0, 0.0)),
    ],
    ids=["first-of-each", "waits-for-weights", "no-slower-than-others", "too-few", "no-decode"],
)
def test_the_first_of_many(
    layers: list[float], tokens: list[float], loads_s: float, expected: tuple[float, float]
) -> None:
    """What the first layer or pass takes longer than the longest of the others; a slow first load is no surprise."""
    found = times(layers, tokens).seconds(10.0, loads_s)
    assert (found["prefill"], found["decode"]) == pytest.approx(expected)

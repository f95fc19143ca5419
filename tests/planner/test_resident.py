"""Resident sizes: the search for the largest gpu batch that has room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.resident import largest


@given(
    most=st.integers(1, 300),
    free_bytes=st.integers(-1000, 100_000),
    row_bytes=st.integers(1, 1000),
    kink=st.integers(1, 300),
    unit=st.sampled_from([1, 256, 4096]),
)
def test_the_largest_size_with_room_is_found(
    most: int, free_bytes: int, row_bytes: int, kink: int, unit: int
) -> None:
    """The search along a line ends where trying all sizes does, though room shrinks in steps and with a kink."""
    tried = []

    def room_bytes(size: int) -> int:
        tried.append(size)
        needed = size * row_bytes + max(0, size - kink) * 2 * row_bytes
        return free_bytes - -(-needed // unit) * unit

    found = largest(most, room_bytes)
    assert set(tried) <= set(range(1, most + 1))
    assert found == max((size for size in range(1, most + 1) if room_bytes(size) >= 0), default=0)

"""Sizes and rates as people write them."""

from __future__ import annotations

import pytest

from hwprofiles.errors import UserError
from hwprofiles.units import (
    format_bytes,
    format_duration,
    format_flops,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16GB", 16 * 10**9),
        ("16 GiB", 16 * 2**30),
        ("512mib", 512 * 2**20),
        ("2.5 GB/s", 2_500_000_000),
        ("1e9", 10**9),
        ("0", 0),
        (" 7 K ", 7000),
        (".5T", 5 * 10**11),
    ],
)
def test_sizes_are_understood(text: str, expected: int) -> None:
    """Decimal and binary units, with or without a space, fraction or exponent."""
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "16 parsecs", "16GB extra", "-1GB", "1e400", "nan"])
def test_a_bad_size_is_quoted(text: str) -> None:
    """The error quotes what was written and shows how to write it."""
    with pytest.raises(UserError, match="write") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


def test_formats_choose_the_unit() -> None:
    """Each formatter writes the unit a person would choose."""
    assert format_bytes(179.3 * 2**30) == "179.3 GiB"
    assert format_bytes(12) == "12 B"
    assert format_rate(55e9) == "55.0 GB/s"
    assert format_flops(766e12) == "766.0 TFLOP/s"
    assert format_flops(2e9) == "2.0 GFLOP/s"
    assert [format_seconds(s) for s in (7507, 1.32, 0.85, 2e-5)] == [
        "2:05:07",
        "1.32 s",
        "850.0 ms",
        "20.0 us",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30m", 1800), ("8h", 28800), ("2d", 172800), ("1h30m", 5400), ("1.5H", 5400), (" 1d 2h 3m 4s ", 93784)],
)
def test_durations_are_understood(text: str, expected: float) -> None:
    """Days to seconds, in this order, each at most once."""
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "8", "8 hours", "h", "0h", "-1h", "30m1h", "1e400s", "8:00"])
def test_a_bad_duration_is_quoted(text: str) -> None:
    """The error quotes what was written and shows how to write it."""
    with pytest.raises(UserError, match="write for example") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("seconds", [60, 90, 3600, 7507, 86400, 200_000])
def test_a_duration_reads_back(seconds: int) -> None:
    """What is written is understood again."""
    assert parse_duration(format_duration(seconds)) == seconds


def test_short_durations() -> None:
    """Below a minute in seconds and their parts."""
    assert [format_duration(s) for s in (0.5, 59.5, 3661)] == ["500.0 ms", "59.50 s", "1h1m1s"]

"""The profile as YAML: strict, round trip, and the shipped ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hwprofiles.errors import UserError
from hwprofiles.profile import (
    Calibration,
    HardwareProfile,
    load_profile,
    shipped_names,
)


@pytest.fixture
def t4() -> HardwareProfile:
    """The shipped T4 host."""
    return load_profile("t4-host")


def changed(profile: HardwareProfile, path: Path, **changes: object) -> str:
    """Write the profile with top-level keys replaced (None removes one) and return the file's name."""
    data = yaml.safe_load(profile.to_yaml())
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_profile_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    """Every shipped profile bears its file's name and comes back equal from its own YAML."""
    profile = load_profile(name)
    assert profile.name == name
    assert profile.source
    path = tmp_path / "hw.yaml"
    path.write_text(profile.to_yaml())
    assert load_profile(str(path)) == profile
    assert load_profile(str(path)).digest() == profile.digest()


def test_the_t4_host_is_marked_as_published(t4: HardwareProfile) -> None:
    """It names its sources, has no fingerprint and no spread, and few rows are bound by memory."""
    assert (t4.method, t4.fingerprint) == ("published", "")
    assert "datasheet" in t4.source
    assert t4.host.memory_bytes == 208 * 10**9
    (gpu,) = t4.gpus
    rates = [point.flops_per_s for point in gpu.gemm["float16"]]
    assert all(rate.spread == 0 for rate in rates)
    assert rates[0].median == pytest.approx(gpu.memory_bytes_per_s.median)
    assert [rate.median for rate in rates] == sorted(rate.median for rate in rates)


def test_a_calibration_round_trips_and_changes_the_digest(t4: HardwareProfile, tmp_path: Path) -> None:
    """Calibration is part of the file and of its hash."""
    calibration = Calibration(factors={"h2d": 1.2}, num_runs=3, error_before=0.3, error_after=0.1)
    profile = replace(t4, calibration=calibration)
    path = tmp_path / "hw.yaml"
    path.write_text(profile.to_yaml())
    assert load_profile(str(path)).calibration == calibration
    assert profile.digest() != t4.digest()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"colour": "green"}, "colour"),
        ({"host": None}, "host"),
        ({"schema_version": None}, "schema_version"),
        ({"schema_version": 99}, "99"),
        ({"method": "guessed"}, "method"),
        ({"gpus": 3}, "gpus"),
        ({"disk": {"directory": "/"}}, "free_bytes"),
    ],
)
def test_a_bad_key_is_named(
    t4: HardwareProfile, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    """Unknown, missing and malformed keys and a newer schema are named in one line with the file."""
    path = changed(t4, tmp_path / "bad.yaml", **changes)
    with pytest.raises(UserError, match=named) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)
    assert "bad.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("host", "logical_cores"), 1.5, "expected a whole number, found 1.5 .*logical_cores"),
        (("host", "memory_bytes"), "16GB", "expected a whole number, found '16GB' .*memory_bytes"),
        (("host", "memory_bytes"), -1, "memory_bytes must be more than zero, found -1"),
        (("host", "memory_bytes"), True, "expected a whole number, found True"),
        (("host", "cpu_model"), None, "expected text, found None .*cpu_model"),
        (("host", "memory_bytes_per_s", "median"), "fast", "expected a number, found 'fast'"),
        (("host", "gemm", "float32"), [], "gemm.float32 needs at least one point"),
        (("gpus", 0, "emulated"), "no", "expected true or false, found 'no'"),
        (("gpus", 0, "link", "h2d_pinned"), [], "h2d_pinned needs at least one point"),
        (("gpus", 0, "gemm", "float16", 0, "rows"), 0, "rows must be more than zero"),
        (("disk", "free_bytes"), -5, "free_bytes must not be negative"),
    ],
)
def test_a_bad_value_is_named(
    t4: HardwareProfile, tmp_path: Path, path: tuple[str | int, ...], value: object, message: str
) -> None:
    """Values of another kind are not bent into shape, and sizes make sense; the error says where."""
    data = node = yaml.safe_load(t4.to_yaml())
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=message):
        load_profile(str(file))


def test_numbers_as_people_write_them(t4: HardwareProfile, tmp_path: Path) -> None:
    """16.0e9 is a whole number, and 1e10, which YAML takes for text, is a number."""
    text = t4.to_yaml().replace("208000000000", "16.0e+9").replace("76800000000.0", "1e10")
    path = tmp_path / "hw.yaml"
    path.write_text(text)
    profile = load_profile(str(path))
    assert profile.host.memory_bytes == 16 * 10**9
    assert profile.host.memory_bytes_per_s.median == 1e10


@pytest.mark.parametrize("median", [0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_positive(t4: HardwareProfile, tmp_path: Path, median: float) -> None:
    """A rate no plan can be made with is refused when the file is read."""
    data = yaml.safe_load(t4.to_yaml())
    data["host"]["memory_bytes_per_s"]["median"] = median
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match="positive"):
        load_profile(str(path))


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\xff\xfe", ""])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """Malformed YAML, a list, bytes that are no text and an empty file are one line each."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"bad\.yaml") as caught:
        load_profile(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_lists_the_shipped_ones() -> None:
    """The error names what there is and how to measure."""
    with pytest.raises(UserError, match=r"t4-host.*hwprofile measure"):
        load_profile("no-such-profile")

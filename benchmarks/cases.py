"""The cases of cases.yaml: what the planner is asked, what peers are given, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.points import Dtype
from hwprofiles.units import parse_bytes
from hwprofiles.yaml_io import from_plain, load_yaml

CASES = Path(__file__).with_name("cases.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCheckpoint:
    """A checkpoint of random weights, written before the runs where dummy weights in memory will not do."""

    model: str
    """A name that the planner knows."""
    dtype: Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a case has to reach; None where nothing was promised."""

    share_of_bound: float | None = None
    """Of the throughput that the profile's rates allow for the plan."""
    share_of_disk: float | None = None
    """Of the rate at which the profile says the disk reads."""
    peer: str | None = None
    times_peer: float | None = None
    """Throughput over the best of that peer in the same run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One key of cases.yaml."""

    planner: str = ""
    """Flags of `planner`: model, caps, bits."""
    percent: str | None = None
    """FlexGen's six; with them the policy is given instead of searched."""
    gpu_batch_size: int | None = None
    num_gpu_batches: int | None = None
    checkpoint: RandomCheckpoint | None = None
    host_limit: str | None = None
    """A size: ours and the peers run in a control group of so much memory, pages of files included."""
    peers: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)
    """Peer -> the settings to try, each with the keys of that peer's own."""
    target: Target = field(default_factory=Target)

    def limit_bytes(self) -> int | None:
        """`host_limit` in bytes."""
        return parse_bytes(self.host_limit) if self.host_limit else None


def load_cases(path: Path = CASES) -> dict[str, Case]:
    """All cases by name, in the order of the file."""
    return {name: from_plain(value, Case, f"{path.name}: {name}") for name, value in load_yaml(path).items()}


def chosen_cases(names: Sequence[str], cases: Mapping[str, Case]) -> dict[str, Case]:
    """The named cases, or all."""
    unknown = set(names) - set(cases)
    if unknown:
        raise UserError(f"unknown case {', '.join(sorted(unknown))}; cases are {', '.join(cases)}")
    return {name: cases[name] for name in names or cases}

"""cases.yaml can be carried out: every case plans, and every setting is one of its peer's."""

from __future__ import annotations

import argparse
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.cases import Case, chosen_cases, load_cases
from benchmarks.ours import Setting, planner_command
from benchmarks.peers.base import check_settings
from benchmarks.peers.factory import PEERS, peer_named
from hwprofiles.errors import UserError

CASES = load_cases()
SETTING = Setting(hw="h200-host", prompt_len=512, gen_len=32, timeout_s=60)


@pytest.mark.parametrize("name", CASES)
def test_the_planner_takes_every_case(name: str) -> None:
    """The command line parses, and its lengths are those of the session."""
    case = CASES[name]
    checkpoint = Path("checkpoint") if case.checkpoint else None
    command = planner_command(case, SETTING, Path("plan.yaml"), checkpoint)
    name = "estimate" if case.percent else "search"
    assert command[1:4] == ["-m", "planner", name]
    parser = argparse.ArgumentParser()
    import_module(f"planner.commands.{name}").add_flags(parser)
    arguments = parser.parse_args(command[4:])
    assert (arguments.prompt_len, arguments.gen_len) == (512, 32)


@pytest.mark.parametrize(
    ("name", "peer"), [(name, peer) for name, case in CASES.items() for peer in case.peers]
)
def test_every_setting_is_one_of_its_peer_s(name: str, peer: str) -> None:
    """Known peers, known keys."""
    for setting in CASES[name].peers[peer]:
        check_settings(peer_named(peer), setting, name)


@pytest.mark.parametrize("name", CASES)
def test_a_target_s_peer_is_run(name: str) -> None:
    """A promise about a peer names one that the case has settings for."""
    target = CASES[name].target
    assert target.peer is None or target.peer in CASES[name].peers
    assert (target.peer is None) == (target.times_peer is None)


def test_a_host_limit_is_what_the_planner_is_told() -> None:
    """A control group smaller than --cpu-mem would kill a run that keeps its promise."""
    for case in CASES.values():
        if case.host_limit:
            words = shlex.split(case.planner)
            assert words[words.index("--cpu-mem") + 1] == case.host_limit


def test_unknown_names_are_user_errors() -> None:
    """Cases and peers that there are not, and keys that a peer does not know."""
    with pytest.raises(UserError, match="unknown case nothing"):
        chosen_cases(["nothing"], {"some": Case()})
    with pytest.raises(UserError, match="unknown peer 'nobody'"):
        peer_named("nobody")
    with pytest.raises(UserError, match="batch"):
        check_settings(PEERS["accelerate"], {"batch": 1}, "case")

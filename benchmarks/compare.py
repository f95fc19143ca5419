"""Our run of a case and its peers', in turn on the same machine: a JSON of all runs, and a table.

    python -m benchmarks.compare two-core --peer accelerate --hw two-core
    python -m benchmarks.compare opt-30b-fp16 --peer zero_inference --hw hw.yaml --wheels wheels

In the first round every setting that the case lists for a peer is run after ours; with --rounds, the further ones run
the best setting only. Without --peer our cases are run alone.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from benchmarks.cases import Case, chosen_cases, load_cases
from benchmarks.facts import current_commit, machine_facts
from benchmarks.json_result import write_json_result
from benchmarks.ours import Setting, make_checkpoint, make_plan
from benchmarks.peers.base import check_settings
from benchmarks.peers.factory import PEERS, peer_named
from benchmarks.peers.install import install
from benchmarks.result import Result
from benchmarks.table import console_table
from benchmarks.turns import Session, Turns
from hwprofiles.errors import UserError, run_cli
from hwprofiles.profile import load_profile
from hwprofiles.terminal import make_console
from planner.plan import load_plan

RESULTS = Path(__file__).with_name("results")


def run_case(name: str, case: Case, session: Session, output: Path) -> Result:
    """A case and its peers; what fails is in the result as an error. The file is written after every run."""
    directory = session.directory / name
    directory.mkdir()
    result = Result(
        case=name,
        commands=(),
        commit=current_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine_facts(),
    )
    try:
        checkpoint = make_checkpoint(case, directory) if case.checkpoint else None
        planning = make_plan(case, session.setting, directory / "plan.yaml", checkpoint)
    except UserError as error:
        result = replace(result, error=str(error))
        write_json_result(result, output)
        return result
    result = replace(result, commands=(planning,), profile=_profile_facts(session.setting.hw))
    turns = Turns(case, load_plan(directory / "plan.yaml"), session, directory, checkpoint)
    for _ in turns.play():
        result = turns.added_to(result)
        write_json_result(result, output)
    return result


def _profile_facts(hw: str) -> dict[str, object]:
    profile = load_profile(hw)
    return {"name": profile.name, "digest": profile.digest(), "created": profile.created}


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of {', '.join(load_cases())}; default all")
    parser.add_argument("--hw", required=True, metavar="NAME-OR-PATH", help="profile of this machine")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME", help=f"may be repeated: {', '.join(PEERS)}"
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="take the peers' packages from here instead of the registry",
    )
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="ours and theirs in turn (default 1)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results"
    )
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument(
        "--work-dir", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR", help="for large files"
    )
    parser.add_argument(
        "--timeout", type=float, default=900, metavar="SECONDS", help="that a run may take (default 900)"
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    cases = chosen_cases(arguments.names, load_cases())
    peers = tuple(peer_named(name) for name in arguments.peer)
    for name, case in cases.items():
        for peer in peers:
            if peer.name not in case.peers:
                raise UserError(f"case {name} lists no settings for {peer.name}; add them to cases.yaml")
            for setting in case.peers[peer.name]:
                check_settings(peer, setting, f"cases.yaml: {name}: {peer.name}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="tierplan-benchmark-", dir=arguments.work_dir) as directory:
        session = Session(
            setting=Setting(
                hw=arguments.hw,
                prompt_len=arguments.prompt_len,
                gen_len=arguments.gen_len,
                timeout_s=arguments.timeout,
            ),
            peers=peers,
            rounds=arguments.rounds,
            directory=Path(directory),
        )
        for peer in peers:
            install(peer, Path(directory, peer.name), arguments.wheels)
        for name, case in cases.items():
            output = arguments.output / f"{'-'.join((name, *arguments.peer))}.json"
            result = run_case(name, case, session, output)
            console.print(console_table(result, case))
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """The command line."""
    arguments = _build_parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    return run_cli(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())

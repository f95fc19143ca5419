"""The command line: output, exit statuses, and what an interruption leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from hwprofiles import cli, measure
from hwprofiles.budget import Budget
from hwprofiles.files import write_atomically
from hwprofiles.profile import Calibration, load_profile
from tests.processes import start, wait_until


def test_list_names_the_shipped_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    """`list` has a line for each."""
    assert cli.main(["list"]) == 0
    assert "t4-host" in capsys.readouterr().out


def test_show_has_every_figure_and_the_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`show` prints facts, rates, the calibration, and that the host is another one."""
    calibration = Calibration(factors={"h2d": 1.25}, num_runs=3, error_before=0.3, error_after=0.1)
    path = tmp_path / "hw.yaml"
    path.write_text(replace(load_profile("t4-host"), calibration=calibration).to_yaml())
    assert cli.main(["show", str(path)]) == 0
    captured = capsys.readouterr()
    for text in ("Tesla T4", "h2d pinned", "1.250", "30.0%", "read while writing"):
        assert text in captured.out
    assert "published figures" in captured.err


def test_diff_shows_the_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate twice as high stands as 2.00; a part that only one profile has stands alone."""
    data = yaml.safe_load(load_profile("t4-host").to_yaml())
    data["host"]["memory_bytes_per_s"]["median"] *= 2
    data["gpus"] = []
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(data))
    assert cli.main(["diff", "t4-host", str(path)]) == 0
    out = capsys.readouterr().out
    assert "2.00" in out
    assert "none" in out


def test_measure_writes_the_profile(
    tmp_path: Path,
    tiny_budget: Budget,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`measure` writes a valid file that bears its name and command, shows it, and restores SIGTERM."""
    cost = measure.ProcessCost(resident_bytes=1, context_bytes=())
    monkeypatch.setattr(measure, "process_cost", lambda *_: cost)
    monkeypatch.setattr(cli, "QUICK", tiny_budget)
    monkeypatch.setattr(measure, "CACHES_READ", 0)
    before = signal.getsignal(signal.SIGTERM)
    output = tmp_path / "mine.yaml"
    arguments = [
        "measure",
        "--quick",
        "-o",
        str(output),
        "--disk-dir",
        str(tmp_path),
        "--emulate-gpu",
        "128MiB",
    ]
    assert cli.main(arguments) == 0
    profile = load_profile(str(output))
    assert profile.name == "mine"
    assert "--emulate-gpu 128MiB" in profile.source
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert f"wrote {output}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "no-such"], "neither a file nor a shipped profile"),
        (["diff", "t4-host", "no-such"], "neither a file nor a shipped profile"),
        (["measure", "--gpu-mem", "lots"], "size 'lots' is not understood"),
        (["measure", "--cpu-mem", "-5GB"], "expected one argument"),
        (["measure", "--cpu-mem=-5GB"], "must not be negative"),
        (["measure", "--emulate-gpu", "0"], "must be more than zero"),
        (["measure", "-o", "missing/hw.yaml"], "directory missing does not exist"),
        (["measure", "-o", "."], "is a directory"),
        (["measure", "--disk-dir", "missing"], "missing is not a directory"),
        (["measure", "--sometimes"], "unrecognized arguments"),
        ([], "required"),
    ],
)
def test_a_mistake_ends_in_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line of error on stderr, no traceback, nothing written."""
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(arguments)
    except SystemExit as ending:  # argparse's own
        status = int(str(ending.code))
    assert status == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption between writing and renaming keeps what was there and removes the temporary file."""
    path = tmp_path / "hw.yaml"
    write_atomically(path, "old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def measure_the_disk_for_long(words: list[str]) -> int:
    """The command, of which all else takes little time."""
    measure.CACHES_READ = 0
    measure.process_cost = lambda *_: measure.ProcessCost(resident_bytes=1, context_bytes=())
    cli.QUICK = replace(
        cli.QUICK, total_s=10, working_set_bytes=2**20, gemm_rows=(1,), gemm_pool_bytes=2**20,
        disk_file_bytes=2**22, disk_block_bytes=(2**20,), disk_threads=(1,) * 300,
    )  # fmt: skip
    return cli.main(words)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_measurement_leaves_nothing(tmp_path: Path, signal_: signal.Signals) -> None:
    """Ctrl-C and SIGTERM while the disk is measured: status 130, no traceback, no file."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    words = ["measure", "--quick", "--disk-dir", str(disk), "-o", str(out / "hw.yaml")]
    process = start(partial(measure_the_disk_for_long, words), tmp_path / "log")
    pid = process.process.pid
    assert pid is not None
    wait_until(lambda: any(".hwprofile-" in name for name in _open_files(pid)), process)
    process.send(signal_)
    assert process.wait() == 130
    assert "Traceback" not in process.said
    assert list(disk.iterdir()) == list(out.iterdir()) == []


def test_the_module_runs_without_torch() -> None:
    """`python -m hwprofiles list` answers without importing torch."""
    root = Path(cli.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hwprofiles", "list"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "t4-host" in done.stdout
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def _open_files(pid: int) -> list[str]:
    """Names of the files that a process holds open; those it closes meanwhile, or all if it ends, left out."""
    names = []
    with suppress(FileNotFoundError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                names.append(str(path.readlink()))
    return names

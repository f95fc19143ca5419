"""Plan and run cases of cases.yaml on this machine with dummy weights; one JSON a case, and a table.

    python benchmarks/run_cases.py --hw hw.yaml -o benchmarks/results opt-30b-fp16 opt-175b-4bit

Each JSON holds the commands, the commit, the machine's facts, the profile's digest, the plan and the run's report.
Prompt 512, generated 32, as in FlexGen's paper, unless --prompt-len or --gen-len say otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

CASES = Path(__file__).with_name("cases.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all cases of a run have in common."""

    hw: str
    prompt_len: int
    gen_len: int
    offload_dir: str
    commit: str
    timeout_s: float


def planner_command(case: dict[str, object], setting: Setting, plan: Path) -> list[str]:
    """`planner search`, or `planner estimate` where the case gives its percents."""
    command = [sys.executable, "-m", "planner", "estimate" if "percent" in case else "search"]
    command += [*shlex.split(str(case["planner"])), "--hw", setting.hw, "-o", str(plan)]
    command += ["--prompt-len", str(setting.prompt_len), "--gen-len", str(setting.gen_len)]
    if "percent" in case:
        command += ["--percent", *str(case["percent"]).split()]
        command += ["--gpu-batch-size", str(case["gpu_batch_size"])]
        command += ["--num-gpu-batches", str(case["num_gpu_batches"])]
    return command


def run_case(name: str, case: dict[str, object], setting: Setting) -> dict[str, object]:
    """One case: its commands, and its report or what went wrong."""
    with tempfile.TemporaryDirectory() as directory:
        plan, report = Path(directory, "plan.yaml"), Path(directory, "report.json")
        planning = planner_command(case, setting, plan)
        running = [sys.executable, "-m", "executor", "run", str(plan), "--dummy-weights"]
        running += ["--report", str(report), "--offload-dir", setting.offload_dir]
        result: dict[str, object] = {
            "case": name,
            "commands": [_shown(planning), _shown(running)],
            "commit": setting.commit,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine_facts(),
        }
        for command in (planning, running):
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=setting.timeout_s, check=False
                )
            except subprocess.TimeoutExpired:
                return {**result, "error": f"not done after {setting.timeout_s:.0f} s: {_shown(command)}"}
            if done.returncode:
                return {**result, "error": done.stderr.strip()[-2000:]}
        return {**result, "report": json.loads(report.read_text())}


def _shown(command: list[str]) -> str:
    return shlex.join(["python", *command[1:]])


def machine_facts() -> dict[str, object]:
    """What tells this machine from another."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        gpus = []
    versions = {}
    for package in ("torch", "transformers"):
        code = f"import {package}; print({package}.__version__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        versions[package] = done.stdout.strip()
    return {"platform": platform.platform(), "python": platform.python_version(), "gpus": gpus, **versions}


def table_of(results: list[dict[str, object]]) -> Table:
    """Predicted beside measured, a row a case."""
    table = Table(title="cases")
    for column in ("case", "prefill", "predicted", "decode", "predicted", "tok/s", "predicted", "gpu", "cpu"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for result in results:
        report = result.get("report")
        if not isinstance(report, dict):
            table.add_row(str(result["case"]), str(result.get("error"))[-200:])
            continue
        cells = [str(result["case"])]
        for phase in report["phases"]:
            cells += [f"{phase['measured_s']:.2f} s", f"{phase['predicted_s']:.2f} s"]
        for key in ("throughput_tokens_per_s", "predicted_throughput_tokens_per_s"):
            cells.append(f"{report[key] or 0:.1f}")
        memory = {row["tier"]: row for row in report["memory"]}
        cells += [_share(memory.get(tier)) for tier in ("gpu", "cpu")]
        table.add_row(*cells)
    return table


def _share(row: dict[str, float] | None) -> str:
    if not row or not row["measured_peak_bytes"]:
        return "-"
    return f"{100 * row['measured_peak_bytes'] / row['ledger_bytes']:.1f}% of ledger"


def main() -> int:
    """Run the cases named, or all."""
    cases = yaml.safe_load(CASES.read_text())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of {', '.join(cases)}; default all")
    parser.add_argument("--hw", required=True, help="profile of this machine")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--offload-dir", default=tempfile.gettempdir())
    parser.add_argument("--commit", default="", help="default: that of the working tree")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a command may take (default 900)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(cases)
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}")
    setting = Setting(
        hw=arguments.hw,
        prompt_len=arguments.prompt_len,
        gen_len=arguments.gen_len,
        offload_dir=arguments.offload_dir,
        commit=arguments.commit or current_commit(),
        timeout_s=arguments.timeout,
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = []
    for name in arguments.names or cases:
        result = run_case(name, cases[name], setting)
        (arguments.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        results.append(result)
        Console(width=150).print(table_of([result]))
    Console(width=150).print(table_of(results))
    return 0


def current_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())

"""The main job from end to end, as a user would type it: train, measure, search, run, verify, calibrate."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from caps import LEAST, tight_caps
from library import held_out_prompts
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from hwprofiles.errors import UserError, run_cli
from hwprofiles.profile import load_profile
from hwprofiles.units import format_bytes, format_seconds
from planner.model import load_model
from planner.plan import Plan, load_plan
from planner.policy import TIERS
from planner.report import RunReport, load_report
from planner.workload import Workload

ROOT = Path(__file__).parents[1]
DEMO = Path(".demo")
MODEL, HW, PLAN = DEMO / "model", DEMO / "hw.yaml", DEMO / "plan.yaml"
PROMPTS, RESULTS = DEMO / "prompts.jsonl", DEMO / "results.jsonl"
REPORT, CALIBRATED = DEMO / "report.json", DEMO / "hw-calibrated.yaml"
NUM_PROMPTS, PROMPT_LEN, GEN_LEN = 64, 64, 32
SAMPLING = {"temperature": 0.6, "top_p": 0.9}
"""A small model that always takes the likeliest token soon repeats itself; `verify` does so all the same."""
EMULATED_GPU = "64MiB"
NUM_SHOWN = 4
WIDTH = 110
"""Columns where the output is no terminal."""
MODULES = {"hwprofile": "hwprofiles", "planner": "planner", "executor": "executor"}


def main() -> int:
    """Run all steps; the first that fails ends the demo."""
    os.chdir(ROOT)
    DEMO.mkdir(exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    demo = Demo(console)
    demo.run("a small model, trained on this Python's own library", f"python examples/tiny_model.py {MODEL}")
    write_prompts()
    demo.run(
        "what this machine can do",
        f"hwprofile measure --quick --emulate-gpu {EMULATED_GPU} --disk-dir {DEMO} -o {HW}",
    )
    demo.run("how to run the model within tight memory", search_command(console))
    check_tiers(load_plan(PLAN), console)
    RESULTS.unlink(missing_ok=True)
    files = f"--model-path {MODEL} --input {PROMPTS} --offload-dir {DEMO}"
    demo.run(
        "64 prompts through that plan", f"executor run {PLAN} {files} --output {RESULTS} --report {REPORT}"
    )
    show_completions(console)
    demo.run("the same tokens as transformers?", f"executor verify {PLAN} {files}")
    demo.run("what the run teaches the profile", f"planner calibrate --hw {HW} {REPORT} -o {CALIBRATED}")
    console.print(summary(demo, load_report(REPORT)))
    return 0


class Demo:
    """Runs commands and keeps how long each took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    def run(self, purpose: str, command: str) -> None:
        """Show a command and run it; a UserError when it fails."""
        self.console.print(Text(f"\n# {purpose}\n$ {command}", style="bold cyan"))
        start = time.monotonic()
        status = subprocess.run(arguments(command), check=False, env=environment(self.console)).returncode
        self.seconds[purpose] = time.monotonic() - start
        if status:
            raise UserError(f"the demo ends here: `{command}` ended with status {status}")


def arguments(command: str) -> list[str]:
    """What a command line runs: this Python, and a module where it names one of our commands."""
    name, *rest = shlex.split(command)
    return [sys.executable, *(["-m", MODULES[name]] if name in MODULES else []), *rest]


def environment(console: Console) -> dict[str, str]:
    """Tables as wide as ours, the packages found also where they are not installed, and OpenMP's idle threads asleep.

    Threads that spin while they wait slow a machine of two cores down ten times when anything else runs.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"COLUMNS": str(console.width), "PYTHONPATH": os.pathsep.join(paths), "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **ours}


def write_prompts() -> None:
    """Beginnings of functions from modules that were kept out of training, in OpenAI's batch form."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    prompts = held_out_prompts(NUM_PROMPTS, PROMPT_LEN, lambda text: len(tokenizer.encode(text).ids))
    lines = [
        {
            "custom_id": f"function-{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "model": MODEL.name,
                "prompt": prompt,
                "max_tokens": GEN_LEN,
                "seed": number,
                **SAMPLING,
            },
        }
        for number, prompt in enumerate(prompts, start=1)
    ]
    PROMPTS.write_text("".join(json.dumps(line) + "\n" for line in lines))


def search_command(console: Console) -> str:
    """planner search, under caps that make it use all three tiers."""
    workload = Workload(prompt_len=PROMPT_LEN, gen_len=GEN_LEN, num_prompts=NUM_PROMPTS)
    caps = tight_caps(load_model(str(MODEL)), workload, load_profile(str(HW)))
    console.print(
        f"\nThe ledger tells what it takes to work on gpu batches of {caps.gpu_batch_size} with all else on disk. With "
        f"room for a quarter of the weights on gpu, and another on cpu, that is {caps.gpu_mb} MB on gpu and "
        f"{caps.cpu_mb} MB on cpu, the process itself included. Under these caps the disk is needed."
    )
    return (
        f"planner search --model {MODEL} --hw {HW} --prompt-len {PROMPT_LEN} --gen-len {GEN_LEN} "
        f"--num-prompts {NUM_PROMPTS} --gpu-mem {caps.gpu_mb}MB --cpu-mem {caps.cpu_mb}MB -o {PLAN}"
    )


def check_tiers(plan: Plan, console: Console) -> None:
    """Say what of the weights each tier holds; a UserError if one holds hardly any."""
    empty = [tier for tier, share in plan.placement.weights.items() if share < LEAST]
    if empty:
        raise UserError(
            f"the plan has hardly any weights on {', '.join(empty)}; all three tiers should hold some"
        )
    amounts = ", ".join(f"{tier} {format_bytes(plan.ledger.bytes_of(tier, 'weights'))}" for tier in TIERS)
    console.print(f"All three tiers hold weights: {amounts}.")


def show_completions(console: Console) -> None:
    """Some prompts with what the model made of them; a UserError if a prompt has no result."""
    results = {}
    for line in RESULTS.read_text().splitlines():
        result = json.loads(line)
        results[result["custom_id"]] = result["response"]["body"]["choices"][0]["text"]
    requests = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    missing = [request["custom_id"] for request in requests if request["custom_id"] not in results]
    if missing or len(results) != NUM_PROMPTS:
        raise UserError(
            f"{RESULTS} has {len(results)} of {NUM_PROMPTS} results; missing: {', '.join(missing)}"
        )
    console.print(
        f"\n{NUM_PROMPTS} results for {NUM_PROMPTS} prompts. Some of them, the completions in green:"
    )
    for request in requests[:NUM_SHOWN]:
        name, completion = (request["custom_id"], "dim"), (results[request["custom_id"]], "green")
        console.print(Text.assemble("\n", name, "\n", request["body"]["prompt"], completion))


def summary(demo: Demo, report: RunReport) -> Table:
    """The figures of the run, and how long each step took."""
    table = Table(title="\nThe demo in figures", title_justify="left", show_header=False)
    predicted, measured = report.predicted_throughput_tokens_per_s, report.throughput_tokens_per_s
    if predicted and measured:
        table.add_row("generated tokens/s", f"{predicted:.0f} predicted, {measured:.0f} measured")
    for row in report.memory:
        if row.measured_peak_bytes is not None:
            promised, held = format_bytes(row.ledger_bytes), format_bytes(row.measured_peak_bytes)
            table.add_row(f"peak on {row.tier}", f"{promised} in the ledger, {held} measured")
    calibration = load_profile(str(CALIBRATED)).calibration
    if calibration:
        error = (
            f"{calibration.error_before:.0%} before, {calibration.error_after:.0%} after, on that run itself"
        )
        table.add_row("median error of prediction", error)
    table.add_section()
    for purpose, seconds in demo.seconds.items():
        table.add_row(purpose, format_seconds(seconds))
    table.add_row("all together", format_seconds(sum(demo.seconds.values())))
    return table


if __name__ == "__main__":
    sys.exit(run_cli(main))

"""Memory is a promise: a run in a process of its own never occupies more than its plan's ledger, nor far less."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from executor.checkpoint import named_tensors
from hwprofiles.probes.process import process_cost
from hwprofiles.profile import HardwareProfile, load_profile
from hwprofiles.units import MIB
from planner.ledger import TOKENIZER
from planner.model import spec_from_config
from planner.plan import Plan, load_plan
from planner.policy import Split
from planner.report import RunReport, load_report
from tests.executor.jobs import plan_for, write_plan
from tests.planner.problems import emulated

ROOT = Path(__file__).parents[2]
CAP_BYTES = 700 * 10**6
OPT = {
    "model_type": "opt", "dtype": "float32", "vocab_size": 4096, "hidden_size": 1280, "ffn_dim": 5120,
    "num_attention_heads": 20, "max_position_embeddings": 512, "word_embed_proj_dim": 1280, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_NEAR = 0.9
"""Of the ledger, at least this much is really occupied."""


@pytest.fixture(scope="module")
def process_bytes() -> int:
    """What any run takes on this machine, as hwprofile measures it."""
    return process_cost(0).resident_bytes


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Gigabytes that are not kept after the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def write_checkpoint(directory: Path, num_layers: int) -> int:
    """A checkpoint of random values, laid end to end; its bytes."""
    config = {**OPT, "num_hidden_layers": num_layers}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, tensor in named_tensors(spec_from_config("big", config)):
        nbytes = 4 * tensor.numel
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    block = (torch.randn(2**20) * 0.02).numpy().tobytes()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, len(block)):
            file.write(block[: offset - start])
    return offset


def write_profile(path: Path, profile: HardwareProfile, process_bytes: int) -> HardwareProfile:
    """The profile with this machine's process."""
    profile = replace(profile, host=replace(profile.host, process_bytes=process_bytes))
    path.write_text(profile.to_yaml())
    return profile


def run_child(*words: str | Path) -> tuple[int, str]:
    """Run one of our commands; the peak of its resident memory as /proc counts it, and what it said."""
    command = [sys.executable, "-m", *map(str, words)]
    peak = 0
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    ) as process:
        while process.poll() is None:
            with suppress(OSError, StopIteration):
                status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak = max(
                    peak, next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
                )
            time.sleep(0.02)
        said = process.stdout.read() if process.stdout else ""
    assert process.returncode == 0, said
    return peak, said


def check_promise(plan: Plan, report: RunReport, peak_bytes: int, tier: str, ledger_bytes: int) -> None:
    """The ledger's sum is kept by both counts, and names what the process itself takes; no tokenizer was there."""
    row = next(row for row in report.memory if row.tier == tier)
    assert row.ledger_bytes == ledger_bytes - plan.ledger.bytes_of("cpu", TOKENIZER)
    assert row.measured_peak_bytes is not None
    assert plan.ledger.bytes_of("cpu", "process") == plan.hardware.process_bytes > 100 * MIB
    assert row.measured_peak_bytes <= ledger_bytes
    assert peak_bytes <= ledger_bytes
    assert row.measured_peak_bytes >= _NEAR * ledger_bytes


def test_a_checkpoint_three_times_larger_than_the_memory(directory: Path, process_bytes: int) -> None:
    """2 GB of weights on disk run in 700 MB, searched and run by the command lines."""
    model, plan_path, report_path = directory / "model", directory / "plan.yaml", directory / "report.json"
    assert write_checkpoint(model, num_layers=27) > 2.9 * CAP_BYTES
    write_profile(directory / "hw.yaml", load_profile("two-core"), process_bytes)
    run_child("planner", "search", "--model", model, "--hw", directory / "hw.yaml", "--cpu-mem", str(CAP_BYTES),
              "--prompt-len", "32", "--gen-len", "3", "--num-prompts", "8", "-o", plan_path)  # fmt: skip
    plan = load_plan(plan_path)
    assert plan.ledger.peak_bytes("cpu") <= CAP_BYTES
    peak, _ = run_child("executor", "run", plan_path, "--model-path", model, "--offload-dir", directory,
                        "--report", report_path)  # fmt: skip
    report = load_report(report_path)
    assert report.generated_tokens == 8 * 3
    check_promise(plan, report, peak, "cpu", plan.ledger.peak_bytes("cpu"))


@pytest.mark.parametrize("bits", [16, 4])
def test_three_tiers(bits: int, directory: Path, process_bytes: int) -> None:
    """An emulated GPU, weights, cache and hidden states on three tiers: the host holds two of them."""
    model, plan_path, report_path = directory / "model", directory / "plan.yaml", directory / "report.json"
    write_checkpoint(model, num_layers=4)
    profile = write_profile(directory / "hw.yaml", emulated(), process_bytes)
    plan = plan_for(
        model,
        profile=profile,
        prompt_len=64,
        gen_len=4,
        gpu_batch_size=8,
        num_gpu_batches=2,
        splits=Split(gpu=0.25, cpu=0.5, disk=0.25),
        weight_bits=bits,
        kv_bits=bits,
        cpu_attention=0.5,
    )
    write_plan(plan_path, plan)
    peak, _ = run_child("executor", "run", plan_path, "--model-path", model, "--offload-dir", directory,
                        "--report", report_path)  # fmt: skip
    host = plan.ledger.peak_bytes("cpu") + plan.ledger.peak_bytes("gpu")
    check_promise(plan, load_report(report_path), peak, "host", host)

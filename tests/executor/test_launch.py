"""`executor run` of a plan with stages starts its ranks by itself; nothing is left of them when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from transformers import PreTrainedTokenizerBase

from tests.executor.jobs import many_prompts, results, save_checkpoint, write_plan, write_prompts
from tests.executor.rank_processes import staged_plan
from tests.processes import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]


def test_ranks_are_started_end_together_and_resume(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """kill -9 of the launcher leaves no rank behind and whole lines only; started again, the job is finished."""
    checkpoint = save_checkpoint(tmp_path / "model", tokenizer, num_hidden_layers=2)
    write_prompts(tmp_path / "p.jsonl", many_prompts(300))
    output, plan_path = tmp_path / "r.jsonl", tmp_path / "plan.yaml"
    words = [sys.executable, "-m", "executor", "run", plan_path, "--model-path", checkpoint]
    words += ["--input", tmp_path / "p.jsonl", "--output", output, "--offload-dir", tmp_path]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    write_plan(plan_path, staged_plan(checkpoint, 2, gpu_batch_size=1, num_gpu_batches=2))
    with subprocess.Popen(words, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL) as launcher:
        wait_until(lambda: output.exists() and output.stat().st_size > 0)
        ranks = [found for found in psutil.Process(launcher.pid).children() if found.is_running()]
        launcher.send_signal(signal.SIGKILL)
    assert len(ranks) == 2
    _, alive = psutil.wait_procs(ranks, PATIENCE_S)
    assert not alive
    assert 0 < len(results(output)) < 300
    write_plan(plan_path, staged_plan(checkpoint, 2, gpu_batch_size=25, num_gpu_batches=4))
    done = subprocess.run(
        words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(results(output)) == 300
    assert "2 ranks" in done.stdout

"""Whole jobs for tests: a tiny checkpoint with a real tokenizer, plans that the planner priced, prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hwprofiles.profile import HardwareProfile
from planner.machine import Caps
from planner.model import load_model
from planner.plan import Plan
from planner.policy import Policy, Split
from planner.problem import make_problem
from planner.workload import Workload
from tests.executor.tiny import random_model
from tests.planner.problems import emulated

TEXTS = (
    "The quick brown fox", "def main(args):", "Zwölf Boxkämpfer jagen", "return", "lazy dog. The lazy dog.",
    "jumps over", "sum(args) / len(args)", "Viktor quer",
)  # fmt: skip
THREE_TIERS = Split(gpu=0.3, cpu=0.3, disk=0.4)
ON_DISK = Split(gpu=0, cpu=0, disk=1)


def save_checkpoint(directory: Path, tokenizer: PreTrainedTokenizerBase, **changes: object) -> Path:
    """A tiny random OPT whose vocabulary is the tokenizer's, as transformers writes both."""
    model = random_model("opt", vocab_size=len(tokenizer), **changes)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def plan_for(
    model_dir: Path,
    *,
    profile: HardwareProfile | None = None,
    prompt_len: int = 32,
    gen_len: int = 6,
    gpu_batch_size: int = 4,
    num_gpu_batches: int = 2,
    splits: Split = THREE_TIERS,
    **policy: object,
) -> Plan:
    """The planner's plan for this policy, on a machine with an emulated GPU unless another is given."""
    workload = Workload(prompt_len=prompt_len, gen_len=gen_len)
    problem = make_problem(load_model(str(model_dir)), workload, profile or emulated(), Caps())
    fixed = Policy(
        gpu_batch_size=gpu_batch_size,
        num_gpu_batches=num_gpu_batches,
        weights=splits,
        cache=splits,
        activations=splits,
        prefill_rows=gpu_batch_size,
        **policy,  # type: ignore[arg-type]
    )
    return problem.plan(fixed)


def write_plan(path: Path, plan: Plan) -> Path:
    """plan.yaml."""
    path.write_text(plan.to_yaml())
    return path


def write_prompts(path: Path, prompts: Sequence[str | Mapping[str, object]]) -> Path:
    """A JSONL file; text becomes a plain prompt."""
    lines = [{"prompt": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def many_prompts(count: int) -> list[str]:
    """Prompts of different lengths."""
    return [" ".join(TEXTS[: 1 + index % 3]) + f" {index}" for index in range(count)]


def results(path: Path) -> dict[str, str]:
    """Text by custom_id of a results file; every line must be whole and no id may come twice."""
    found: dict[str, str] = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        assert line["custom_id"] not in found, f"{line['custom_id']} has two lines"
        found[line["custom_id"]] = line["response"]["body"]["choices"][0]["text"]
    return found

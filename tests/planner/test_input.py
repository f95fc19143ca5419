"""`--input`: a plan for the prompts of a file."""

from __future__ import annotations

import json
import random
import re
from functools import partial
from pathlib import Path

import pytest

from executor.batching import make_blocks
from executor.tokenize import encode_prompt, load_tokenizer
from planner.cli import main
from planner.plan import Plan, load_plan
from planner.prompts import read_requests
from tests.planner.test_tokenizer import TEMPLATES, plain, save

WORDS = [
    "The",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "def",
    "main",
    "args",
    "return",
    "sum",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and a tokenizer, without weights."""
    directory = tmp_path_factory.mktemp("model")
    return save(directory, "opt", plain(), chat_template=TEMPLATES["chatml"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Texts and chats of many lengths."""
    rng = random.Random(1)
    lines: list[dict[str, object]] = []
    for n in range(60):
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        chat = {"messages": [{"role": "user", "content": text}], "max_tokens": rng.choice((4, 9, 20))}
        lines.append({"prompt": text} if n % 3 else chat)
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def plan_of(*words: object) -> Plan:
    """What `planner` writes for these flags."""
    *command, path = map(str, words)
    assert main([*command, "-o", path]) == 0
    return load_plan(Path(path))


def test_the_plan_is_for_what_the_executor_will_run(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lengths, blocks and padding are those of the executor's own reading and batching of the file."""
    plan = plan_of(
        "search", "--model", checkpoint, "--hw", "two-core", "--input", prompts, "--gen-len", 7, tmp_path / "plan.yaml"
    )  # fmt: skip
    workload, policy = plan.workload, plan.policy
    requests = read_requests(
        prompts,
        partial(encode_prompt, load_tokenizer(checkpoint)),
        default_max_tokens=workload.default_gen_len or 0,
        max_positions=None,
    )
    lengths = sorted(((len(r.prompt_ids), r.max_tokens) for r in requests), reverse=True)
    assert [(p, g) for p, g, count in workload.lengths for _ in range(count)] == lengths
    blocks = make_blocks(
        requests,
        gpu_batch_size=policy.gpu_batch_size,
        num_gpu_batches=policy.num_gpu_batches,
        pad_id=0,
    )
    assert plan.job is not None
    assert plan.job.num_blocks == len(blocks)
    assert plan.job.padding_tokens == sum(b.num_pad_tokens for block in blocks for b in block.gpu_batches)
    assert plan.job.last_block_size == sum(len(batch.requests) for batch in blocks[-1].gpu_batches)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Job: 60 prompts" in shown
    assert "begun now, it is done" in shown


def test_an_estimate_is_for_the_file_too(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    """A given policy is priced for the same lengths, here with another checkpoint's tokenizer."""
    policy = ["--percent", 0, 100, 0, 100, 0, 100, "--gpu-batch-size", 8, "--num-gpu-batches", 2]
    plan = plan_of(
        "estimate", "--model", "opt-125m", "--hw", "two-core", "--input", prompts, "--model-path", checkpoint,
        *policy, tmp_path / "plan.yaml",
    )  # fmt: skip
    assert plan.job is not None
    assert (plan.job.num_blocks, plan.job.last_block_size) == (4, 12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "opt-125m"], "opt-125m is not a directory; give --model-path DIR, or --prompt-len"),
        (["--model", "CHECKPOINT", "--prompt-len", "9"], "--prompt-len is counted from --input"),
        (["--model", "CHECKPOINT", "--num-prompts", "9"], "--num-prompts is counted from --input"),
        (["--model", "CHECKPOINT", "--gen-len", "0"], "--gen-len is 0; generate at least 1"),
        (
            ["--model", "CHECKPOINT", "--gen-len", "150"],
            "p.jsonl:1: prompt of .* the model has 128 positions",
        ),
        (["--model", "CHECKPOINT", "--model-path", "/none"], "/none is not a directory"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], message: str, checkpoint: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names what to give."""
    prompts.write_text('{"prompt": "quick"}\n')
    given = [str(checkpoint) if flag == "CHECKPOINT" else flag for flag in flags]
    assert main(["search", "--hw", "two-core", "--input", str(prompts), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_a_model_path_is_for_an_input(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be without effect."""
    assert main(["search", "--model", "opt-125m", "--hw", "two-core", "--model-path", str(checkpoint)]) == 2
    assert "give --input too" in capsys.readouterr().err

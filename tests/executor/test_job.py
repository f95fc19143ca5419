"""Jobs: every number of prompts, blocks one after the other, sampling that a resumed run repeats."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from executor.arena import Arena
from executor.engine import Engine
from executor.job import JobOptions, run_job
from executor.loading import SilentLoading
from executor.progress import SilentReporter
from executor.sampling import Completion
from hwprofiles.errors import UserError
from planner.plan import Plan
from planner.report import RunReport
from tests.executor.jobs import TEXTS, many_prompts, plan_for, results, save_checkpoint, write_prompts

SAMPLED = {"temperature": 1.0, "top_p": 0.9}


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT with its tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture
def options(checkpoint: Path, tmp_path: Path) -> JobOptions:
    """A job from p.jsonl to r.jsonl."""
    return JobOptions(
        model_dir=checkpoint,
        input_path=tmp_path / "p.jsonl",
        output_path=tmp_path / "r.jsonl",
        offload_dir=tmp_path,
    )


def run(plan: Plan, options: JobOptions) -> tuple[RunReport, list[Completion]]:
    """The report and all completions."""
    completions: list[Completion] = []
    report = run_job(plan, options, SilentReporter(), SilentLoading(), completions.extend)
    return report, completions


@pytest.mark.parametrize(
    ("num_prompts", "num_blocks"),
    [(1, 1), (3, 1), (4, 1), (5, 1), (8, 1), (9, 2), (21, 3)],
    ids=str,
)
def test_any_number_of_prompts(
    num_prompts: int, num_blocks: int, checkpoint: Path, options: JobOptions, tmp_path: Path
) -> None:
    """Fewer than a gpu batch of 4, more than a block of 8: each prompt gets one line, in as few blocks as can be."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(num_prompts))
    report, completions = run(plan_for(checkpoint), options)
    assert (report.num_requests, report.num_blocks) == (num_prompts, num_blocks)
    assert sorted(results(tmp_path / "r.jsonl")) == sorted(f"request-{n + 1}" for n in range(num_prompts))
    assert {len(completion.token_ids) for completion in completions} == {6}
    assert report.padding_tokens == padding(completions)


def padding(completions: Sequence[Completion]) -> int:
    """Of 21 prompts at most, sorted by length and dealt to gpu batches of up to 4 in blocks of 8."""
    lengths = sorted((len(c.request.prompt_ids) for c in completions), reverse=True)
    total = 0
    for start in range(0, len(lengths), 8):
        block = lengths[start : start + 8]
        groups = -(-len(block) // 4)
        for group in range(groups):
            rows = block[len(block) * group // groups : len(block) * (group + 1) // groups]
            total += sum(rows[0] - length for length in rows)
    return total


def test_a_batch_does_not_change_a_prompt(checkpoint: Path, options: JobOptions, tmp_path: Path) -> None:
    """A prompt gets the same tokens alone and among others of other lengths."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(9))
    _, together = run(plan_for(checkpoint), options)
    for completion in together[:3]:
        (tmp_path / "r.jsonl").unlink()
        prompt = {"prompt": list(completion.request.prompt_ids), "custom_id": completion.request.custom_id}
        write_prompts(tmp_path / "p.jsonl", [prompt])
        _, (alone,) = run(plan_for(checkpoint), options)
        assert alone.token_ids == completion.token_ids


def test_own_lengths(checkpoint: Path, options: JobOptions, tmp_path: Path) -> None:
    """Each request's max_tokens counts for it alone."""
    write_prompts(
        tmp_path / "p.jsonl", [{"prompt": text, "max_tokens": n + 1} for n, text in enumerate(TEXTS[:6])]
    )
    report, completions = run(plan_for(checkpoint), options)
    assert {c.request.custom_id: len(c.token_ids) for c in completions} == {
        f"request-{n + 1}": n + 1 for n in range(6)
    }
    assert report.generated_tokens == 21


@pytest.mark.parametrize("seed", [None, 7])
def test_sampling_survives_a_resume(
    seed: int | None, checkpoint: Path, options: JobOptions, tmp_path: Path
) -> None:
    """Sampled texts depend on the request alone: a job cut off after some lines draws the rest as it would have."""
    seeded = {**SAMPLED, **({} if seed is None else {"seed": seed})}
    write_prompts(tmp_path / "p.jsonl", [{"prompt": text, **seeded} for text in many_prompts(13)])
    plan, output = plan_for(checkpoint, gpu_batch_size=2), tmp_path / "r.jsonl"
    run(plan, options)
    whole, lines = results(output), output.read_bytes().splitlines(keepends=True)
    assert len(set(whole.values())) > 1
    output.write_bytes(b"".join(lines[:4]) + lines[4][:30])  # as a kill may leave it
    report, _ = run(plan, options)
    assert report.num_requests == 9
    assert results(output) == whole


def test_a_seed_decides(checkpoint: Path, options: JobOptions, tmp_path: Path) -> None:
    """The same prompt with the same seed gives the same text, with another seed another."""
    seeds = (1, 1, 2, 3)
    write_prompts(tmp_path / "p.jsonl", [{"prompt": TEXTS[0], "seed": seed, **SAMPLED} for seed in seeds])
    _, completions = run(plan_for(checkpoint), options)
    tokens = {c.request.index: c.token_ids for c in completions}
    assert tokens[0] == tokens[1]
    assert len(set(tokens.values())) == 3


def test_lines_are_safe_before_the_sink_sees_them(
    checkpoint: Path, options: JobOptions, tmp_path: Path
) -> None:
    """A block's lines are written before anything else is told of it; an error later leaves them."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(12))
    seen: list[int] = []

    def sink(completions: Sequence[Completion]) -> None:
        seen.append(len(results(tmp_path / "r.jsonl")))
        if len(seen) == 2:
            raise RuntimeError("later")

    plan = plan_for(checkpoint, gpu_batch_size=2)
    with pytest.raises(RuntimeError, match="later"):
        run_job(plan, options, SilentReporter(), SilentLoading(), sink)
    assert seen == [4, 8]
    assert len(results(tmp_path / "r.jsonl")) == 8


def test_memory_is_given_back(
    checkpoint: Path, options: JobOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a job nothing holds its arenas, so that verify has room for the reference model."""
    write_prompts(tmp_path / "p.jsonl", TEXTS)
    mappings: list[weakref.ref[object]] = []
    map_host = Arena._map_host

    def remember(arena: Arena) -> object:
        tensor = map_host(arena)
        if arena.nbytes:
            mappings.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    monkeypatch.setattr(Arena, "_map_host", remember)
    run(plan_for(checkpoint), options)
    gc.collect()
    assert mappings
    assert [ref() for ref in mappings if ref() is not None] == []


def test_out_of_memory_is_a_users_error(
    checkpoint: Path, options: JobOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the allocator gives no more, the line names the remedy, and finished lines stay."""
    write_prompts(tmp_path / "p.jsonl", many_prompts(12))
    generate, blocks = Engine.generate, []

    def fail(*arguments: object) -> None:
        blocks.append(arguments)
        if len(blocks) == 2:
            raise MemoryError("DefaultCPUAllocator: can't allocate memory")
        generate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "generate", fail)
    with pytest.raises(UserError, match="--cpu-mem"):
        run(plan_for(checkpoint), options)
    assert len(results(tmp_path / "r.jsonl")) == 8

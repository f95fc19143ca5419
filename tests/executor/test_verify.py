"""verify: what counts as the same, what as a near tie, and what as a difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from executor import verify
from executor.cli import main
from executor.sampling import Completion
from executor.verdict import Verdict, verdict_lines
from executor.verify import compare, reference_model
from hwprofiles.errors import UserError
from hwprofiles.units import GIB
from planner.plan import ModelRef
from tests.executor.jobs import TEXTS, plan_for, save_checkpoint, write_plan, write_prompts
from tests.executor.tiny import random_model, random_prompts, reference_tokens, save

CPU = torch.device("cpu")
NO_EOS: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A random Llama."""
    return random_model("llama")


@pytest.fixture(scope="module")
def completions(model: PreTrainedModel) -> list[Completion]:
    """What the model itself generates."""
    requests = random_prompts([5, 9, 3], 6)
    tokens = reference_tokens(model, requests)
    return [
        Completion(request=r, token_ids=tokens[r.custom_id], text=None, finish_reason="length")
        for r in requests
    ]


def said(verdict: Verdict) -> str:
    """All lines."""
    return "\n".join(verdict_lines(verdict, is_lossy=False))


def with_tokens(completion: Completion, tokens: Sequence[int]) -> Completion:
    """The completion with other tokens."""
    return replace(completion, token_ids=tuple(tokens))


def test_the_same(model: PreTrainedModel, completions: list[Completion]) -> None:
    """No difference: the sums are of all prompts and tokens."""
    verdict = compare(model, "float32", completions, NO_EOS)
    assert (verdict.num_requests, verdict.num_tokens, verdict.differences) == (3, 18, ())
    assert verdict.is_same


@pytest.mark.parametrize("position", [0, 3, 5])
def test_the_first_difference_is_named(
    position: int, model: PreTrainedModel, completions: list[Completion]
) -> None:
    """Prompt, position, both tokens and how far apart their logits are."""
    tokens = list(completions[1].token_ids)
    altered = [*tokens[:position], *[(token + 1) % 160 for token in tokens[position:]]]
    verdict = compare(model, "float32", [completions[0], with_tokens(completions[1], altered)], NO_EOS)
    (difference,) = verdict.differences
    assert (difference.custom_id, difference.position) == ("r1", position)
    assert (difference.ours, difference.reference) == (altered[position], tokens[position])
    assert difference.margin > verify.NEAR_TIE["float32"]
    assert not verdict.is_same
    assert f"r1: first difference at generated token {position}: {altered[position]} instead of" in said(
        verdict
    )


def test_a_near_tie_is_no_difference(model: PreTrainedModel, completions: list[Completion]) -> None:
    """The runner-up within rounding of the best, here because half the head's rows are nearly the other half."""
    head = model.get_output_embeddings().weight
    before = head.detach().clone()
    with torch.no_grad():
        head[80:] = head[:80] * (1 + 1e-6)
    try:
        tokens = reference_tokens(model, [completions[0].request])["r0"]
        twin = [(token + 80) % 160 for token in tokens]
        verdict = compare(model, "float32", [with_tokens(completions[0], twin)], NO_EOS)
    finally:
        with torch.no_grad():
            head.copy_(before)
    assert [(d.position, d.near_tie) for d in verdict.differences] == [(0, True)]
    assert verdict.is_same
    assert "same as transformers up to rounding: 1 prompts, 6 tokens, 1 near ties" in said(verdict)


def test_the_end_counts_as_a_token(model: PreTrainedModel, completions: list[Completion]) -> None:
    """Ending where the reference goes on is a difference, and so is going on where it ends."""
    tokens = completions[0].token_ids
    eos = frozenset({tokens[4], 159})
    cut = tokens[: tokens.index(tokens[4])]
    assert compare(model, "float32", [with_tokens(completions[0], cut)], eos).is_same
    (early,) = compare(model, "float32", [with_tokens(completions[0], cut[:-1])], eos).differences
    assert (early.position, early.ours, early.reference) == (len(cut) - 1, None, cut[-1])
    (late,) = compare(model, "float32", [completions[0]], eos).differences
    assert (late.position, late.ours, late.reference) == (len(cut), tokens[len(cut)], None)
    assert late.margin == 0
    assert not late.near_tie, "to go on after an end is a fault, not rounding"


def test_the_generation_config_changes_nothing(tmp_path: Path) -> None:
    """A checkpoint may come with penalties and sampling for chat; verify compares the plain greedy tokens."""
    model = random_model("llama")
    requests = random_prompts([7, 4], 8)
    plain = reference_tokens(model, requests)
    spec = save(model, tmp_path)
    config = tmp_path / "generation_config.json"
    config.write_text(
        json.dumps({"repetition_penalty": 3.0, "do_sample": True, "temperature": 0.6, "top_k": 2})
    )
    reference = reference_model(tmp_path, ModelRef(name="llama", dtype=spec.dtype, config=spec.config), CPU)
    completions = [
        Completion(request=r, token_ids=plain[r.custom_id], text=None, finish_reason="length")
        for r in requests
    ]
    assert compare(reference, "float32", completions, NO_EOS).differences == ()


def test_a_reference_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model must fit the host's memory; refused before it is loaded."""
    model = random_model("llama")
    spec = save(model, tmp_path)
    monkeypatch.setattr(verify, "host_headroom", lambda: ("MemAvailable", 1000))
    with pytest.raises(UserError, match=r"verify needs all of llama .* 1000 B is free \(MemAvailable\)"):
        reference_model(tmp_path, ModelRef(name="llama", dtype=spec.dtype, config=spec.config), CPU)
    monkeypatch.setattr(verify, "host_headroom", lambda: ("MemAvailable", GIB))
    assert reference_model(tmp_path, ModelRef(name="llama", dtype=spec.dtype, config=spec.config), CPU)


def test_requests_are_compared_greedily_and_whole(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Temperature and stop strings of the prompts file are set aside; four bits are said to be lossy."""
    checkpoint = save_checkpoint(tmp_path / "model", tokenizer)
    lines = [{"prompt": text, "temperature": 1.5, "stop": ["e", "a"]} for text in TEXTS]
    prompts = write_prompts(tmp_path / "p.jsonl", lines)
    capsys.readouterr()
    for bits, status in ((16, 0), (4, 1)):
        plan = write_plan(tmp_path / "plan.yaml", plan_for(checkpoint, weight_bits=bits, kv_bits=bits))
        command = ["verify", plan, "--model-path", checkpoint, "--input", prompts, "--offload-dir", tmp_path]
        assert main([str(word) for word in command]) == status
        assert ("lossy" in capsys.readouterr().out) == (bits == 4)

"""A whole comparison of a tiny model: our run and a peer's in turn, and the result they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.cases import Case
from benchmarks.facts import visible
from benchmarks.figures import figures_of
from benchmarks.json_result import load_json_result
from benchmarks.result import Result
from benchmarks.table import row_of

TINY = {
    "model_type": "opt",
    "dtype": "float32",
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "word_embed_proj_dim": 64,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("planner", ["", "--cpu-mem 1MB "], ids=["fits", "does not fit"])
def test_a_case_and_a_peer(planner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are run, or the result says why not, the peer once for two cases; the file has what the page needs."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    case = Case(
        planner=f"{planner}--model {tmp_path / 'config.json'} --num-prompts 2",
        peers={"transformers": [{"batch_size": 2}]},
    )
    monkeypatch.setattr(compare, "load_cases", lambda: {"tiny": case, "again": case})
    words = [
        "compare",
        "tiny",
        "again",
        "--hw",
        "two-core",
        "--peer",
        "transformers",
        "-o",
        str(tmp_path / "results"),
    ]
    words += ["--prompt-len", "16", "--gen-len", "4", "--work-dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    assert compare.main() == 0
    result, again = (
        load_json_result(tmp_path / "results" / f"{name}-transformers.json", Result)
        for name in ("tiny", "again")
    )
    if planner:
        assert "1MB" in (result.error or "") or "cpu" in (result.error or "")
        assert row_of(result, case)[1] == "failed"
        return
    assert result.report is not None, result.error
    found = figures_of(result.report)
    assert found is not None
    (peer,) = result.peers
    assert again.peers == result.peers, "what a peer was told before is not run again"
    assert again.runs != result.runs
    best = peer.best()
    assert best is not None, peer.runs[0].error
    assert best.throughput_tokens_per_s is not None
    times = float(row_of(result, case)[7])
    assert times == pytest.approx(found.throughput / best.throughput_tokens_per_s, abs=0.051)
    assert result.commands[0].startswith("python -m planner search")
    assert str(tmp_path / "tierplan") not in json.dumps(result.commands)
    assert not list(tmp_path.glob("tierplan-benchmark-*"))


@pytest.mark.parametrize(
    ("setting", "left"),
    [(None, ["a", "b"]), ("1", ["b"]), ("1,0", ["b", "a"]), ("", []), ("GPU-1f", ["a", "b"])],
)
def test_gpus_that_cuda_leaves(setting: str | None, left: list[str]) -> None:
    """By number; what is named otherwise is not told apart."""
    assert visible(["a", "b"], setting) == left

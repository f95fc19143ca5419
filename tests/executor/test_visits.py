"""Decode that is replayed part by part: on the CPU with a tape in the place of graphs, and on a GPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from executor.block import BatchState
from executor.engine import EngineOptions
from executor.layer_compute import LayerCompute
from executor.visits import Replays
from hwprofiles.native_attention import find_attention
from planner.tasks import Task
from planner.workload import Workload
from tests.executor.tape import Tape, TapeGraphs, played_on_tapes
from tests.executor.tiny import make_plan, random_model, random_prompts, reference_tokens, run_plan, save

ATTENDED = (0, 0, 4, 0, 0)
LENGTHS = [16, 5, 9, 12, 12, 3, 1, 8, 10, 11, 2, 7]
TOGETHER, APART = [12] * 12, [6 if 7 <= length <= 10 else 12 for length in LENGTHS]
"""Tokens of each prompt: of three gpu batches, longest prompts first, the second one ends before the others."""
three_batches = partial(make_plan, num_gpu_batches=3, workload=Workload(prompt_len=16, gen_len=12))


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> list[TapeGraphs]:
    """The graphs of each engine; as many tokens as are asked for are replayed on the CPU."""
    monkeypatch.setattr(Tape, "num_played", 0)
    torch.set_num_threads(1)
    return played_on_tapes(monkeypatch)


@pytest.mark.skipif(find_attention() is None, reason="no compiler")
@pytest.mark.parametrize("tokens", [TOGETHER, APART], ids=["together", "apart"])
@pytest.mark.parametrize("weights", ["g", "gc", "c"])
@pytest.mark.parametrize("family", ["opt", "llama", "qwen3", "gpt2"])
def test_what_the_cpu_attends_is_replayed(
    family: str, weights: str, tokens: list[int], tape: list[TapeGraphs], tmp_path: Path
) -> None:
    """Ragged prompts, three layers in two slots: the same tokens, and most passes called nothing."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = three_batches(spec, weights=weights, cache=ATTENDED)
    requests = random_prompts(LENGTHS, tokens)
    options = EngineOptions(device=torch.device("cpu"), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    slots, passes = (1 if weights == "g" else 2), sum(tokens) // 4 - 3 * 2
    [graphs] = tape
    if tokens == TOGETHER:  # two parts each
        assert graphs.num_captured == 2 * 3 * 3 * slots
        assert Tape.num_played == 2 * 3 * (passes - 3 * slots)
    else:
        assert graphs.num_captured > 2 * 3 * 3 * slots
        assert Tape.num_played > 3 * (passes - 3 * slots)


@pytest.mark.skipif(find_attention() is None, reason="no compiler")
@pytest.mark.parametrize(
    ("lengths", "tokens", "num_alike"),
    [
        (LENGTHS * 2, TOGETHER * 2, 2),
        ([9] * 24, TOGETHER * 2, 2),
        ([9] * 12 + LENGTHS, TOGETHER * 2, 1),
        (LENGTHS * 2, APART * 2, 1),
        ((LENGTHS * 2)[:23], (TOGETHER * 2)[:23], 1),
    ],
    ids=["padded", "all of a length", "of two kinds", "apart in the end", "fewer in the end"],
)
def test_later_blocks_are_replayed_too(
    lengths: list[int],
    tokens: list[int],
    num_alike: int,
    tape: list[TapeGraphs],
    tmp_path: Path,
) -> None:
    """What the first block captured holds for another of as many rows and as padded; else it is anew."""
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    plan = three_batches(spec, weights="gc", cache=ATTENDED)
    requests = random_prompts(lengths, tokens)
    options = EngineOptions(device=torch.device("cpu"), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    [graphs] = tape
    num_parts = 2 * sum(plan.sizes().graphs.num_graphs(j, range(3)) for j in range(3))
    if num_alike == 2:
        assert graphs.num_captured == num_parts
    else:
        assert graphs.num_captured > num_parts


@pytest.mark.skipif(find_attention() is None, reason="no compiler")
@pytest.mark.parametrize("tokens", [TOGETHER, APART], ids=["together", "apart"])
@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_layers_that_slide_are_called_between_others(
    family: str, tokens: list[int], tape: list[TapeGraphs], tmp_path: Path
) -> None:
    """Of three layers one keeps all tokens and is replayed; the same tokens come out."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = three_batches(spec, weights="gc", cache=ATTENDED)
    assert len(plan.sizes().graphs.layers) == 1
    requests = random_prompts(LENGTHS, tokens)
    options = EngineOptions(device=torch.device("cpu"), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    assert tape[0].num_captured
    assert Tape.num_played


@pytest.mark.skipif(find_attention() is None, reason="no compiler")
def test_gpu_batches_that_end_often_are_called(
    tape: list[TapeGraphs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many orders nothing more is captured, and tokens stay the same."""
    monkeypatch.setattr(Replays, "MOST_ORDERS", 1)
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    plan = three_batches(spec, cache=ATTENDED)
    requests = random_prompts(LENGTHS, APART)
    options = EngineOptions(device=torch.device("cpu"), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    assert tape[0].num_captured == 2 * 3 * 3


BOTH, STREAMED, THREE = (2, 0, 2, 0, 0), (0, 4, 0, 0, 0), (1, 1, 2, 0, 0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "cache", "weights", "tokens"),
    [
        ("llama", ATTENDED, "c", TOGETHER),
        ("llama", BOTH, "c", TOGETHER),
        ("llama", BOTH, "c", APART),
        ("opt", ATTENDED, "g", APART),
        ("opt", THREE, "gc", TOGETHER),
        ("opt", STREAMED, "c", APART),
        ("gpt2", THREE, "c", APART),
    ],
)
def test_the_same_tokens_on_a_gpu(
    family: str, cache: tuple[int, ...], weights: str, tokens: list[int], tmp_path: Path
) -> None:
    """Attended by the CPU, by both, and streamed; weights in one slot or in two; also where gpu batches end."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = three_batches(spec, weights=weights, cache=cache, emulated=False)
    requests = random_prompts(LENGTHS, tokens)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [LENGTHS * 3, [9] * 36, [9] * 12 + LENGTHS * 2, (LENGTHS * 3)[:31]])
@pytest.mark.parametrize("cache", [(4, 0, 0, 0, 0), ATTENDED, BOTH, STREAMED, THREE])
def test_later_blocks_are_replayed_on_a_gpu(
    cache: tuple[int, ...], lengths: list[int], tmp_path: Path
) -> None:
    """Three blocks: from the first pass of decode on where all rows are at home, from the second elsewhere."""
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    plan = three_batches(spec, weights="gc", cache=cache, emulated=False)
    requests = random_prompts(lengths, [12] * len(lengths))
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [(16, 16), (4, 4)])
def test_experts_are_replayed_in_bfloat16(bits: tuple[int, int], tmp_path: Path) -> None:
    """The same tokens with graphs and without, half of the rows the CPU's."""
    model = random_model("mixtral", torch.bfloat16, sliding_window=None)
    spec = save(model, tmp_path / "model")
    requests = random_prompts(LENGTHS, TOGETHER)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    found = []
    for graphs in (True, False):
        plan = three_batches(
            spec,
            weights="c",
            cache=(2, 0, 2, 0, 0),
            emulated=False,
            graphs=graphs,
            weight_bits=bits[0],
            kv_bits=bits[1],
        )
        assert bool(plan.sizes().graphs.batches)
        found.append(run_plan(plan, tmp_path / "model", requests, options))
    assert found[0] == found[1]


@pytest.mark.parametrize("tokens", [TOGETHER, APART], ids=["together", "apart"])
@pytest.mark.parametrize("family", ["opt", "llama", "qwen2"])
def test_layers_between_which_nothing_moves_are_one_task(
    family: str, tokens: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All on the GPU: decode visits a gpu batch once a pass, though no graph can be had; the same tokens come out."""
    model = random_model(family, **({"use_sliding_window": False} if family == "qwen2" else {}))
    spec = save(model, tmp_path / "model")
    plan = three_batches(spec)
    assert plan.sizes().joins_layers
    visited: list[tuple[int, int, int]] = []
    run = LayerCompute.run

    def counting(self: LayerCompute, task: Task, state: BatchState) -> None:
        visited.append((task.i, task.j, task.num_layers))
        run(self, task, state)

    monkeypatch.setattr(LayerCompute, "run", counting)
    requests = random_prompts(LENGTHS * 2, tokens * 2)
    options = EngineOptions(device=torch.device("cpu"), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    assert {(j, count) for i, j, count in visited if i == 0} == {(j, 1) for j in range(-1, 4)}
    assert {(j, count) for i, j, count in visited if i} == {(-1, 1), (0, 3), (3, 1)}

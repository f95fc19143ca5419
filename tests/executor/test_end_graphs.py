"""The ends of a decode pass: a graph takes a call's place once it has left the same for another token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from executor.end_graphs import EndGraphs, EndKey, EndWork
from executor.engine import EngineOptions
from executor.graphs import LayerGraphs
from executor.kept import KeptBatches
from executor.template import LayerTemplates, Recorded
from tests.executor.tape import TapeGraphs, played_on_tapes
from tests.executor.test_parity import LENGTHS
from tests.executor.tiny import make_plan, random_model, random_prompts, reference_tokens, run_plan, save

KEY: EndKey = ("tail", 0)


class Tape(LayerGraphs):
    """Graphs without a GPU: what was captured is called again."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), wanted=False)
        self.are_used = True

    def try_capture(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph | str:
        """A call of the work at every replay."""

        class Played:
            replay = staticmethod(work)

        return Played()  # type: ignore[return-value]


class Passes:
    """A pass adds the token, and a number of the host's that a graph would keep as it was."""

    def __init__(self, num_by_host: Callable[[int], int]) -> None:
        self.token, self.result, self.num_calls = torch.zeros(1), torch.zeros(1), 0
        self._by_host = num_by_host

    def work(self, i: int) -> EndWork:
        """Of token i."""
        number = self._by_host(i)

        def on_device() -> None:
            self.result.copy_(self.token + number)

        def call() -> None:
            self.num_calls += 1
            on_device()

        return EndWork(call=call, on_device=on_device, left=lambda: [self.result])

    def run(self, ends: EndGraphs, count: int) -> list[float]:
        """The result of each pass."""
        found = []
        for i in range(count):
            self.token.fill_(10.0 * i)
            ends.run(KEY, self.work(i))
            found.append(float(self.result))
        return found


def test_a_proven_graph_takes_the_calls_place() -> None:
    """The first call is captured, the second one proves it, and there is no third."""
    passes = Passes(lambda i: 1)
    assert passes.run(EndGraphs(Tape()), 5) == [1.0, 11.0, 21.0, 31.0, 41.0]
    assert passes.num_calls == 2


def test_what_the_host_changes_from_token_to_token_is_called() -> None:
    """The graph would leave another result: it never takes the call's place, nor does any other."""
    passes, ends = Passes(lambda i: i), EndGraphs(Tape())
    assert passes.run(ends, 5) == [0.0, 11.0, 22.0, 33.0, 44.0]
    assert passes.num_calls == 5
    constant = Passes(lambda i: 1)
    constant.run(ends, 3)
    assert constant.num_calls == 3


def test_what_is_alike_for_every_token_needs_no_proof() -> None:
    """It is captured at once; where that fails it is called, and nothing is captured any more."""
    token, result = torch.zeros(1), torch.zeros(1)
    for reason in (None, "no stream"):
        graphs = Tape()
        ends, asked = EndGraphs(graphs), list[str]()

        def try_capture(
            work: Callable[[], object],
            reason: str | None = reason,
            graphs: Tape = graphs,
            asked: list[str] = asked,
        ) -> torch.cuda.CUDAGraph | str:
            asked.append("once")
            return Tape.try_capture(graphs, work) if reason is None else reason

        graphs.try_capture = try_capture  # type: ignore[method-assign]
        for i in range(4):
            token.fill_(i)
            ends.repeat(KEY, lambda: result.copy_(token))  # type: ignore[arg-type]
            assert float(result) == i
        assert asked == ["once"]


def test_what_is_forgotten_is_captured_anew() -> None:
    """For blocks of another form."""
    passes, ends = Passes(lambda i: 1), EndGraphs(Tape())
    passes.run(ends, 3)
    ends.forget()
    passes.run(ends, 3)
    assert passes.num_calls == 4


@pytest.fixture
def preludes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each prelude that was called or captured."""
    found: list[int] = []
    prelude = LayerTemplates.prelude

    def counting(self: LayerTemplates, ids: torch.Tensor, *others: object) -> Recorded:
        found.append(ids.shape[1])
        return prelude(self, ids, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerTemplates, "prelude", counting)
    return found


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> list[TapeGraphs]:
    """The graphs of each engine, replayed on the CPU; layers, whose attention a tape knows nothing of, are called."""
    monkeypatch.setattr(KeptBatches, "is_replayed", lambda self, task: False)
    return played_on_tapes(monkeypatch)


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("lengths", [[6] * 16, LENGTHS[:8] * 2])
@pytest.mark.parametrize("weights", ["g", "gc"])
def test_later_blocks_call_nothing(
    family: str, lengths: list[int], weights: str, preludes: list[int], tape: list[TapeGraphs], tmp_path: Path
) -> None:
    """Padded or not: of a second block the prompts alone are called for, and it gets the same tokens."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, weights=weights)
    assert plan.sizes().graphs.has_ends
    requests = random_prompts(lengths, 8)
    options = EngineOptions(device=torch.device("cpu"), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    assert tape[0].num_captured
    called = 3 + 1  # passes of decode, and the capture
    assert preludes.count(1) == called * plan.policy.num_gpu_batches


def test_rows_that_draw_are_called(tape: list[TapeGraphs], tmp_path: Path) -> None:
    """Beside greedy ones in the block before: the graph of the tail knows nothing of a row's random numbers."""
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    greedy, drawn = random_prompts([6] * 8, 8), random_prompts([6] * 16, 8)[8:]
    drawn = [replace(request, temperature=1.0, seed=n) for n, request in enumerate(drawn)]
    options = EngineOptions(device=torch.device("cpu"), offload_dir=tmp_path)
    plan = make_plan(spec)
    alone = run_plan(plan, tmp_path / "model", drawn, options)
    after = run_plan(plan, tmp_path / "model", [*greedy, *drawn], options)
    assert {name: tokens for name, tokens in after.items() if name in alone} == alone
    assert all(graphs.num_captured for graphs in tape)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("lengths", [[6] * 8, LENGTHS[:8]])
def test_tokens_equal_transformers_without_calls(
    family: str, lengths: list[int], preludes: list[int], tmp_path: Path
) -> None:
    """Padded or not: of eight tokens the first four of a gpu batch are called for, prompt and capture aside."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, emulated=False)
    requests = random_prompts(lengths, 8)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    num_batches = -(-len(requests) // plan.policy.gpu_batch_size)
    assert preludes.count(1) <= 4 * num_batches + 1


@pytest.mark.gpu
def test_a_family_that_counts_on_the_host_is_called(
    preludes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prelude depends on how often it was called: the same hidden states as without graphs, call by call."""
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    requests = random_prompts([6] * 4, 8)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    prelude = LayerTemplates.prelude

    def by_position(self: LayerTemplates, *arguments: object) -> Recorded:
        found = prelude(self, *arguments)  # type: ignore[arg-type]
        return Recorded(found.hidden * (1.0 + arguments[3].get_seq_length()), found.arguments)  # type: ignore[attr-defined]

    monkeypatch.setattr(LayerTemplates, "prelude", by_position)
    tokens = []
    for graphs in (True, False):
        plan = make_plan(spec, emulated=False, graphs=graphs)
        tokens.append(run_plan(plan, tmp_path / "model", requests, options))
    assert tokens[0] == tokens[1]
    assert preludes.count(1) >= 2 * 7

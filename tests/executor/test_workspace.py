"""What torch allocates while it computes, counted by its profiler, against the ledger's entries beside the arenas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from executor.checkpoint import Checkpoint
from executor.engine import Engine, EngineOptions
from executor.experts import by_expert
from executor.sampling import Sampler
from planner.model import ModelSpec
from planner.plan import Plan
from planner.workload import Workload
from planner.workspace import SCRATCH_BYTES, Fed, workspace_bytes
from tests.executor.tiny import blocks_of, make_plan, random_model, random_prompts, save

CPU = torch.device("cpu")
WIDE: dict[str, dict[str, object]] = {
    "opt": {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024},
    "llama": {"hidden_size": 256, "intermediate_size": 768},
    "gemma2": {"hidden_size": 256, "head_dim": 32, "intermediate_size": 768, "sliding_window": 512},
    "mixtral": {"hidden_size": 256, "intermediate_size": 512},
    "phi3": {"hidden_size": 256, "intermediate_size": 512},
    "gpt_neox": {"hidden_size": 256, "intermediate_size": 1024},
    "gpt2": {"n_embd": 256},
    "bloom": {"hidden_size": 256},
}
"""Families whose layers allocate in different ways, wide enough for the tensors to outweigh everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Prompts and gpu batch of a block."""

    lengths: tuple[int, ...]
    rows: int
    prefill_rows: int
    gen_len: int


COMPUTED = ("workspace", "layer arguments", "logits", "dequantised cache")
SHAPES = {
    "wide prefill": Shape(lengths=(32,) * 16, rows=8, prefill_rows=8, gen_len=1),
    "long padded prefill": Shape(lengths=(100, 90, 80), rows=3, prefill_rows=2, gen_len=1),
    "padded decode": Shape(lengths=(24, 23) * 12, rows=24, prefill_rows=1, gen_len=3),
}


def live_peak_bytes(body: Callable[[], None]) -> int:
    """The most bytes of torch's CPU allocator that were in use at once during `body`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        body()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peak = now = 0
    for _, num_bytes in moves:
        now += num_bytes
        peak = max(peak, now)
    return peak


def plan_of(spec: ModelSpec, shape: Shape, bits: int) -> Plan:
    """All on the CPU, which computes."""
    return make_plan(
        spec,
        weights="c",
        cache=(0, shape.rows, 0, 0, 0),
        activations=(0, shape.rows, 0),
        num_gpu_batches=-(-len(shape.lengths) // shape.rows),
        compute_tier="cpu",
        emulated=False,
        workload=Workload(prompt_len=max(shape.lengths), gen_len=shape.gen_len),
        prefill_rows=shape.prefill_rows,
        weight_bits=bits,
        kv_bits=bits,
    )


def run_block(plan: Plan, directory: Path, shape: Shape) -> int:
    """The live peak of a block, after another one has warmed everything up."""
    engine = Engine(plan, EngineOptions(device=CPU, offload_dir=directory, overlap=False))
    (block,) = blocks_of(plan, random_prompts(shape.lengths, shape.gen_len))

    def generate() -> None:
        samplers = [Sampler(b, eos_ids=frozenset(), tokenizer=None, device=CPU) for b in block.gpu_batches]
        engine.generate(block, samplers)

    try:
        engine.load(Checkpoint(directory, plan.model.spec()))
        generate()
        return live_peak_bytes(generate)
    finally:
        engine.close()


CASES = [
    *((torch.float32, 16, family) for family in ("opt", "llama", "gemma2", "mixtral", "gpt2", "bloom")),
    (torch.bfloat16, 16, "phi3"),
    (torch.bfloat16, 4, "gpt_neox"),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "bits", "family"), CASES, ids=lambda value: str(value).removeprefix("torch.")
)
def test_ledger_covers_what_computing_allocates(
    dtype: torch.dtype, bits: int, family: str, shape: str, tmp_path: Path
) -> None:
    """Never more than the ledger's workspace, arguments, logits and dequantised cache; nor far less."""
    chosen = SHAPES[shape]
    spec = save(random_model(family, dtype, **WIDE[family]), tmp_path)
    plan = plan_of(spec, chosen, bits)
    others = [entry for entry in plan.ledger.entries if entry.purpose in COMPUTED]
    prefill, decode = sum(e.prefill_bytes for e in others), sum(e.decode_bytes for e in others)
    live, ledger = run_block(plan, tmp_path, chosen), max(prefill, decode) if chosen.gen_len > 1 else prefill
    assert live <= ledger
    if bits == 16:
        assert live >= 0.4 * (ledger - SCRATCH_BYTES)


@pytest.mark.parametrize("is_even", [True, False], ids=["even", "all to the same"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ledger_covers_experts_in_turn(
    dtype: torch.dtype, is_even: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does with a long prompt, also where all of its tokens go to the same experts."""
    monkeypatch.setattr("planner.layout._LARGE_FLOPS", 1.0)
    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "grouped_mm", by_expert)
    chosen = SHAPES["wide prefill"]
    model = random_model("mixtral", dtype, **WIDE["mixtral"])
    if not is_even:
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.data.zero_()
    spec = save(model, tmp_path)
    plan = plan_of(spec, chosen, 16)
    others = [e for e in plan.ledger.entries if e.purpose in COMPUTED and e.purpose != "workspace"]
    fed = Fed(rows=chosen.prefill_rows, num_new=32, num_total=32)
    workspace = workspace_bytes(spec, fed, dtype.itemsize, 16, on_gpu=True)
    ledger = workspace + sum(e.prefill_bytes for e in others)
    live = run_block(plan, tmp_path, chosen)
    assert live <= ledger
    assert is_even or live >= 0.4 * (ledger - SCRATCH_BYTES)
    assert workspace < workspace_bytes(spec, fed, dtype.itemsize, 16, on_gpu=False)

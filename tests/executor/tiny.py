"""Tiny random checkpoints of every family, and hand-made plans for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel

from executor.batching import Block, make_blocks
from executor.checkpoint import Checkpoint
from executor.engine import Engine, EngineOptions
from executor.sampling import Sampler
from planner.ledger import Target, make_ledger
from planner.model import ModelSpec, spec_from_config
from planner.placement import CacheRows, Placement, TierRows
from planner.plan import SCHEMA_VERSION, ModelRef, PhasePrediction, Plan, Prediction
from planner.policy import Policy, Split, Tier
from planner.prompts import Request
from planner.schedule import Task
from planner.workload import Workload

SMALL = {"num_hidden_layers": 3, "vocab_size": 160, "hidden_size": 64, "num_attention_heads": 4}
GQA = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, object]] = {
    "opt": {**SMALL, "ffn_dim": 96, "max_position_embeddings": 128, "word_embed_proj_dim": 64},
    "llama": GQA,
    "mistral": {**GQA, "sliding_window": 7},
    "qwen2": {**GQA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {**GQA, "head_dim": 32},
    "gemma2": {**GQA, "head_dim": 16, "sliding_window": 6},
    "mixtral": {**GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12},
    "phi3": {**GQA, "sliding_window": 9, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": {**SMALL, "intermediate_size": 96, "max_position_embeddings": 128},
    "gpt2": {"n_layer": 3, "vocab_size": 160, "n_embd": 64, "n_head": 4, "n_positions": 128},
    "bloom": {"n_layer": 3, "vocab_size": 160, "hidden_size": 64, "n_head": 4},
}
"""model_type -> config, small enough that a test is instant."""


def random_model(family: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A model whose greedy tokens vary: weights are larger than an initialisation's."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
            elif "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.bos_token_id = None
    return model.to(dtype).eval()


def save(model: PreTrainedModel, directory: Path, **options: object) -> ModelSpec:
    """A checkpoint directory as transformers writes it, and its ModelSpec."""
    model.save_pretrained(directory, **options)
    return spec_of(model)


def spec_of(model: PreTrainedModel) -> ModelSpec:
    """The planner's view of a transformers model."""
    return spec_from_config(
        model.config.model_type, model.config.to_dict(), str(model.dtype).removeprefix("torch.")
    )


def random_prompts(
    lengths: Sequence[int], max_tokens: Sequence[int] | int, vocab_size: int = 160
) -> list[Request]:
    """Requests of these prompt lengths."""
    generator = torch.Generator().manual_seed(3)
    wanted = itertools.repeat(max_tokens) if isinstance(max_tokens, int) else max_tokens
    return [
        Request(
            custom_id=f"r{index}",
            index=index,
            prompt_ids=tuple(torch.randint(3, vocab_size, (length,), generator=generator).tolist()),
            max_tokens=tokens,
            temperature=0.0,
            top_p=1.0,
            stop=(),
            seed=None,
            chat=False,
        )
        for index, (length, tokens) in enumerate(zip(lengths, wanted, strict=False))
    ]


def make_plan(
    spec: ModelSpec,
    *,
    weights: str = "g",
    cache: Sequence[int] = (4, 0, 0, 0, 0),
    activations: Sequence[int] = (4, 0, 0),
    num_gpu_batches: int = 2,
    compute_tier: Tier = "gpu",
    emulated: bool = True,
    workload: Workload | None = None,
    graphs: bool = True,
    **policy: int | str,
) -> Plan:
    """A plan with this placement: `weights` is a pattern of letters repeated over all tensors of all layers,
    `cache` the rows of (gpu, cpu, cpu_attend, disk, disk_attend), `activations` of (gpu, cpu, disk). On a real GPU
    decode is replayed as CUDA graphs where it can be, unless without `graphs`."""
    letters = itertools.cycle(weights)
    tiers = tuple("".join(next(letters) for _ in layer.tensors) for layer in spec.layers)
    rows = CacheRows(**dict(zip(("gpu", "cpu", "cpu_attend", "disk", "disk_attend"), cache, strict=True)))
    hidden = TierRows(**dict(zip(("gpu", "cpu", "disk"), activations, strict=True)))
    even = Split(gpu=1.0, cpu=0.0, disk=0.0)
    placement = Placement(
        weight_tiers=tiers,
        cache_rows=(rows,) * num_gpu_batches,
        activation_rows=(hidden,) * num_gpu_batches,
        weights=even,
        cache=even,
        activations=even,
    )
    chosen = Policy(
        gpu_batch_size=rows.total,
        num_gpu_batches=num_gpu_batches,
        weights=even,
        cache=even,
        activations=even,
        **{"prefill_rows": 3, **policy},  # type: ignore[arg-type]
    )
    workload = workload or Workload(prompt_len=16, gen_len=8)
    target = Target(
        name="test",
        digest="",
        fingerprint="",
        compute_tier=compute_tier,
        emulated=emulated,
        gpu_bytes=10**10,
        cpu_bytes=10**10,
        disk_bytes=10**10,
        context_bytes=0,
        process_bytes=0,
        graph_operation_bytes=8192 if graphs and not emulated else 0,
    )
    phase = PhasePrediction(seconds=1.0, busy_s={}, binding="gpu")
    return Plan(
        schema_version=SCHEMA_VERSION,
        model=ModelRef.of(spec),
        workload=workload,
        hardware=target,
        policy=chosen,
        placement=placement,
        ledger=make_ledger(spec, workload, chosen, placement, target),
        prediction=Prediction(prefill=phase, decode=phase, throughput_tokens_per_s=1.0, tasks=()),
    )


def blocks_of(plan: Plan, requests: Sequence[Request]) -> list[Block]:
    """The plan's blocks of these requests."""
    policy = plan.policy
    return make_blocks(
        requests, gpu_batch_size=policy.gpu_batch_size, num_gpu_batches=policy.num_gpu_batches, pad_id=0
    )


def run_plan(
    plan: Plan,
    directory: Path,
    requests: Sequence[Request],
    options: EngineOptions,
    observe: Callable[[Task, torch.Tensor], None] | None = None,
    is_first: bool = True,
    *,
    warm_up: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Tokens by custom_id, from the engine with the checkpoint's weights; `observe` sees the logits.

    Of a pipeline only the first stage knows all tokens. Where a GPU computes, an engine warms up by itself.
    """
    engine = Engine(plan, options)
    if observe:
        engine.compute.observe_logits = observe  # type: ignore[method-assign]
    try:
        engine.load(Checkpoint(directory, plan.model.spec()))
        if warm_up:
            engine.warm_up()
        tokens = {}
        for block in blocks_of(plan, requests):
            samplers = [
                Sampler(batch, eos_ids=frozenset(), tokenizer=None, device=options.device)
                for batch in block.gpu_batches
            ]
            engine.generate(block, samplers)
            for sampler in samplers if is_first else ():
                tokens.update({c.request.custom_id: c.token_ids for c in sampler.results()})
        return tokens
    finally:
        engine.close()


_REFERENCES: dict[tuple[object, ...], tuple[int, ...]] = {}
"""What generate said, by all that decides it: tests ask many engines for the tokens of one model."""


def reference_tokens(
    model: PreTrainedModel, requests: Sequence[Request], cache: type[Cache] = DynamicCache
) -> dict[str, tuple[int, ...]]:
    """Tokens by custom_id, from transformers' own greedy generate, one prompt at a time."""
    digest, tokens = _digest(model), {}
    for request in requests:
        key = digest, cache, request.prompt_ids, request.max_tokens
        if key not in _REFERENCES:
            _REFERENCES[key] = _generate(model, request, cache)
        tokens[request.custom_id] = _REFERENCES[key]
    return tokens


def _digest(model: PreTrainedModel) -> str:
    """Of its config and of every weight's bytes."""
    found = sha256(model.config.to_json_string().encode())
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _generate(model: PreTrainedModel, request: Request, cache: type[Cache]) -> tuple[int, ...]:
    ids = torch.tensor([request.prompt_ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_tokens,
        do_sample=False,
        past_key_values=cache(config=model.config),  # type: ignore[call-arg]
    )
    return tuple(out[0, ids.shape[1] :].tolist())

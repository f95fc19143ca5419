"""Small problems for tests: models, machines and workloads of any size, none of which is ever allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hwprofiles.points import NO_MARGINS, Kernels
from hwprofiles.profile import HardwareProfile, load_profile
from planner.batching import Lengths
from planner.ledger import LIBRARY_BYTES, LOADING_BYTES, kernels_host_bytes
from planner.machine import Caps, make_target
from planner.model import ModelSpec, load_model, spec_from_config
from planner.policy import Policy, Split
from planner.problem import Problem, make_problem
from planner.workload import Workload
from planner.workspace import tokenizer_bytes

MB, GB = 10**6, 10**9
ON_GPU, ON_CPU, ON_DISK = (Split(gpu=g, cpu=c, disk=d) for g, c, d in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def small_opt(num_layers: int = 6, hidden_size: int = 1024, **changes: object) -> ModelSpec:
    """An OPT of a few layers."""
    config: Mapping[str, object] = {
        "model_type": "opt",
        "dtype": "float16",
        "vocab_size": 8000,
        "max_position_embeddings": 2048,
        "hidden_size": hidden_size,
        "word_embed_proj_dim": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 64,
        "ffn_dim": 4 * hidden_size,
        **changes,
    }
    return spec_from_config("small-opt", config)


def small_mixtral() -> ModelSpec:
    """A mixture of 8 experts, two for a token."""
    config: Mapping[str, object] = {
        "model_type": "mixtral",
        "dtype": "float16",
        "vocab_size": 8000,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    return spec_from_config("small-mixtral", config)


def small_gemma2(window: int = 40, num_layers: int = 5, **changes: object) -> ModelSpec:
    """Every other layer has a sliding window, the first one too."""
    config: Mapping[str, object] = {
        "model_type": "gemma2",
        "dtype": "float16",
        "vocab_size": 8000,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "sliding_window": window,
        **changes,
    }
    return spec_from_config("small-gemma2", config)


def small_t4() -> HardwareProfile:
    """The T4 host with process, context, margins and kernels made small beside a small model."""
    profile = load_profile("t4-host")
    kernels: dict[Kernels, int] = {"few_rows": 0}
    gpu = replace(profile.gpus[0], context_bytes=10 * MB, margins=NO_MARGINS, kernels_host_bytes=kernels)
    return replace(profile, gpus=(gpu,), host=replace(profile.host, process_bytes=50 * MB))


def emulated() -> HardwareProfile:
    """A two-core host with a capped arena for a GPU; its rates are the T4's link and the host's compute."""
    profile, t4 = load_profile("two-core"), load_profile("t4-host").gpus[0]
    gpu = replace(
        t4,
        name="emulated",
        emulated=True,
        memory_bytes=500 * MB,
        memory_bytes_per_s=profile.host.memory_bytes_per_s,
        gemm=profile.host.gemm,
        context_bytes=0,
    )
    return replace(profile, gpus=(gpu,))


def problem_of(
    model: ModelSpec | str = "opt-1.3b",
    profile: HardwareProfile | None = None,
    *,
    prompt_len: int = 128,
    gen_len: int = 16,
    num_prompts: int | None = None,
    gpu: int | None = None,
    cpu: int | None = None,
    disk: int | None = None,
) -> Problem:
    """A model on a machine (the small T4 host) under caps in bytes; `cpu` is beside what any run takes for itself."""
    workload = Workload(prompt_len=prompt_len, gen_len=gen_len, num_prompts=num_prompts)
    spec = load_model(model) if isinstance(model, str) else model
    profile = profile or small_t4()
    if cpu is not None:
        kernels = kernels_host_bytes(spec, 1, make_target(profile, Caps()))
        cpu += LIBRARY_BYTES + max(LOADING_BYTES, kernels) + tokenizer_bytes(spec)
    return make_problem(spec, workload, profile, Caps(gpu_bytes=gpu, cpu_bytes=cpu, disk_bytes=disk))


def policy_of(
    weights: Split = ON_CPU,
    cache: Split = ON_CPU,
    activations: Split = ON_CPU,
    *,
    size: int = 4,
    batches: int = 2,
    weight_bits: int = 16,
    kv_bits: int = 16,
    cpu_attention: float = 0.0,
    prefill_rows: int = 4,
) -> Policy:
    """A policy by its splits."""
    return Policy(
        gpu_batch_size=size,
        num_gpu_batches=batches,
        weights=weights,
        cache=cache,
        activations=activations,
        weight_bits=4 if weight_bits == 4 else 16,
        kv_bits=4 if kv_bits == 4 else 16,
        cpu_attention=cpu_attention,
        prefill_rows=prefill_rows,
    )


def with_lengths(problem: Problem, lengths: Lengths) -> Problem:
    """The same with (prompt, tokens to generate) of these lengths."""
    return replace(problem, workload=Workload.of_lengths(lengths, 16))

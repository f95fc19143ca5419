"""A job: a plan, a model, prompts in, result lines out; block by block, resumable, never over its ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from executor import memory, preflight
from executor.checkpoint import Checkpoint
from executor.compiling import watch_compiler
from executor.engine import EngineOptions
from executor.leg import Ask, JobContext, Switch, give_memory_back, run_leg
from executor.loading import LoadProgress
from executor.measure import Measurements
from executor.progress import Reporter
from executor.ranks import ALONE, Ranks
from executor.report import JobTotals, make_report
from executor.results import ResultFile
from executor.sampling import Completion
from executor.tokenize import encode_prompt, load_tokenizer
from executor.trace import TraceOptions, open_trace
from hwprofiles.allocation import give_back_large_tensors
from hwprofiles.errors import UserError
from planner.joined_report import joined
from planner.ledger import NCCL
from planner.plan import Plan
from planner.prompts import Request, read_requests, synthetic_requests
from planner.rank_reports import joined_ranks
from planner.report import RunReport


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What to run and where its files are."""

    model_dir: Path | None
    """A checkpoint directory; None for dummy weights."""
    input_path: Path | None = None
    """JSONL; None for synthetic prompts of the workload's lengths."""
    output_path: Path | None = None
    offload_dir: Path
    overlap: bool = True
    first: int | None = None
    """Only so many prompts of the input, greedily and without stop strings: what `verify` compares."""
    trace: TraceOptions | None = None
    ask: Ask | None = None
    """After the first block: whether to go on with another plan."""


def compute_device(plan: Plan, rank: int = 0) -> torch.device:
    """The device that a plan's rank computes on; a UserError where this machine lacks it."""
    if plan.hardware.compute_tier != "gpu" or plan.hardware.emulated:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"the plan is for {plan.hardware.name}, which computes on a GPU, but torch finds no CUDA device here; "
            "measure this machine with: hwprofile measure -o hw.yaml, and plan again"
        )
    wanted = (plan.stages[rank].gpu or 0) if plan.stages else 0
    count = torch.cuda.device_count()
    if wanted >= count > 1:
        raise UserError(
            f"rank {rank} computes on GPU {wanted}, this host has {count}; plan again for this host"
        )
    return torch.device("cuda", wanted if count > 1 else 0)  # a launcher may show each rank its own only


@contextmanager
def gpu_cap(plan: Plan, device: torch.device) -> Iterator[None]:
    """Hold torch's allocator to the plan's gpu limit, so that a 16 GB plan lives in 16 GB on a larger card."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    others = plan.hardware.context_bytes + plan.ledger.bytes_of("gpu", NCCL)
    share = max(0, plan.hardware.gpu_bytes - others) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def memory_errors() -> Iterator[None]:
    """A UserError in place of what the allocators raise where a device or the host gives no more."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and not isinstance(error, MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        tier = "gpu" if on_gpu else "cpu"
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the {tier} tier ran out of memory ({reason}); results written so far are kept: "
            f"close other programs, or search again with a smaller --{tier}-mem and run the same job with that plan"
        ) from None


def run_job(
    plan: Plan,
    options: JobOptions,
    reporter: Reporter,
    loading: LoadProgress,
    sink: Callable[[Sequence[Completion]], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> RunReport:
    """Run all pending prompts; the results file is whole after every block, however the run ends.

    `sink` is given each block's completions once their lines are safe. The first rank has the prompts, the results
    and the report of all; the others get their own.
    """
    own = plan.of_rank(ranks.rank)
    own.known_rates()
    memory.reset_peak()
    device = compute_device(plan, ranks.rank)
    if device.type == "cpu":
        give_back_large_tensors()
    else:
        torch.cuda.set_device(device)
        watch_compiler()
    checkpoint = Checkpoint(options.model_dir, own.model.spec()) if options.model_dir else None
    tokenizer = load_tokenizer(options.model_dir) if options.model_dir and options.input_path else None
    with ExitStack() as stack:
        results, work = None, None
        if ranks.rank == 0:
            requests = job_requests(plan, options, tokenizer)
            if options.output_path:
                found = ResultFile(options.output_path, requests, model=plan.model.name)
                results = stack.enter_context(found)
            work = _Work.of(requests, results)
        work = ranks.share(work)
        if not work.pending:
            report = make_report(own, Measurements(), JobTotals(), device, disk_bytes=0)
            return _of_all(plan, report, ranks)
        others = [plan.of_rank(rank) for rank in ranks.on_this_host]
        preflight.check(own, offload_dir=options.offload_dir, device=device, others=others)
        ranks.meet("checked")
        stack.enter_context(gpu_cap(own, device))
        stack.enter_context(memory_errors())
        trace = stack.enter_context(open_trace(options.trace, plan, device, ranks)) if options.trace else None
        context = JobContext(
            engine_options=EngineOptions(
                device=device,
                offload_dir=options.offload_dir,
                overlap=options.overlap,
                transport=ranks.transport,
            ),
            checkpoint=checkpoint,
            tokenizer=tokenizer,
            eos_ids=end_of_sequence_ids(options.model_dir),
            total_tokens=work.total_tokens,
            results=results,
            recorder=trace,
            reporter=reporter,
            loading=loading,
            sink=sink,
            has_tokens=ranks.rank == 0,
        )
        report, switch = run_leg(own, work.pending, context, options.ask)
        if switch:
            return _go_on(report, switch, context)
        return _of_all(plan, report, ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is left to do, as the first rank tells the others."""

    pending: list[Request]
    total_tokens: int
    """Of all prompts of the job, at most."""

    @classmethod
    def of(cls, requests: list[Request], results: ResultFile | None) -> _Work:
        return cls(
            pending=results.pending if results else requests,
            total_tokens=sum(request.max_tokens for request in requests),
        )


def _of_all(plan: Plan, own: RunReport, ranks: Ranks) -> RunReport:
    """At the first rank of a pipeline the report of all ranks."""
    reports = ranks.collect("report", own)
    return joined_ranks(plan, reports) if plan.stages and reports else own


def _go_on(report: RunReport, switch: Switch, context: JobContext) -> RunReport:
    """The rest of a job with another plan, once the first one's memory is given back; the report of both legs."""
    engine_options = context.engine_options
    give_memory_back(engine_options.device)
    preflight.check(switch.plan, offload_dir=engine_options.offload_dir, device=engine_options.device)
    rest, _ = run_leg(switch.plan, switch.remaining, context)
    return joined(report, rest, switch.reason)


def job_requests(plan: Plan, options: JobOptions, tokenizer: PreTrainedTokenizerBase | None) -> list[Request]:
    """The prompts of the input file, or synthetic ones; each must fit the plan's workload."""
    spec, workload = plan.model.spec(), plan.workload
    if options.input_path is None:
        num = workload.num_prompts or plan.policy.block_size
        return _first_greedy(
            synthetic_requests(num, workload.prompt_len, workload.gen_len, spec.vocab_size), options.first
        )
    if tokenizer is None:
        raise UserError(
            "--input needs a tokenizer: give --model-path DIR (dummy weights run on made-up prompts)"
        )
    requests = read_requests(
        options.input_path,
        partial(encode_prompt, tokenizer),
        default_max_tokens=workload.default_gen_len or workload.gen_len,
        max_positions=spec.max_positions,
    )
    _check_lengths(requests, plan)
    return _first_greedy(requests, options.first)


def _first_greedy(requests: Sequence[Request], first: int | None) -> list[Request]:
    if first is None:
        return list(requests)
    return [dataclasses.replace(request, temperature=0.0, stop=()) for request in requests[:first]]


def _check_lengths(requests: Sequence[Request], plan: Plan) -> None:
    longest = max(requests, key=lambda request: len(request.prompt_ids))
    if len(longest.prompt_ids) > plan.workload.prompt_len:
        raise UserError(
            f"{longest.custom_id}: the prompt has {len(longest.prompt_ids)} tokens, the plan was made for "
            f"{plan.workload.prompt_len}; search again with --prompt-len {len(longest.prompt_ids)}"
        )
    furthest = max(requests, key=lambda request: request.max_tokens)
    if furthest.max_tokens > plan.workload.gen_len:
        raise UserError(
            f"{furthest.custom_id}: max_tokens is {furthest.max_tokens}, the plan was made for "
            f"{plan.workload.gen_len}; search again with --gen-len {furthest.max_tokens}"
        )


def end_of_sequence_ids(model_dir: Path | None) -> frozenset[int]:
    """The ids that end a sequence, as the checkpoint's generation config (or config) names them."""
    if model_dir is None:
        return frozenset()
    name = "generation_config.json" if (model_dir / "generation_config.json").is_file() else "config.json"
    found = GenerationConfig.from_pretrained(model_dir, config_file_name=name).eos_token_id
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])

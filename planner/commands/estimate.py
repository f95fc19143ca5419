"""`planner estimate`: what a given policy would cost, and whether it fits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from hwprofiles.errors import UserError
from planner.advise import estimate
from planner.commands.options import add_output, add_problem, problem_of
from planner.commands.output import deliver
from planner.commands.stages import add_stages, has_stages
from planner.policy import Bits, Policy, Split
from planner.problem import Problem


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A policy, in FlexGen's words."""
    add_problem(parser)
    add_policy(parser)
    add_stages(parser, fixed=True)
    add_output(parser)


def add_policy(parser: argparse.ArgumentParser, *, whole: bool = True) -> None:
    """Batch sizes, percents, bits and attention; where it need not be whole, what is left out is None."""
    bits = "16" if whole else None
    parser.add_argument("--weight-bits", choices=("16", "4"), default=bits, help="default: 16, lossless")
    parser.add_argument("--kv-bits", choices=("16", "4"), default=bits, help="default: 16, lossless")
    parser.add_argument(
        "--cpu-attention",
        choices=("on", "off"),
        default="off" if whole else None,
        help="attend all cache rows that are off the GPU on the CPU in decode (default: off)",
    )
    parser.add_argument(
        "--percent",
        type=float,
        nargs=6,
        required=whole,
        metavar=("WG", "WC", "CG", "CC", "AG", "AC"),
        help="percent of weights, cache and activations on gpu and on cpu; the rest is on disk",
    )
    parser.add_argument(
        "--gpu-batch-size", type=int, required=whole, metavar="B", help="sequences computed together"
    )
    parser.add_argument(
        "--num-gpu-batches", type=int, required=whole, metavar="N", help="gpu batches of a block"
    )


def run(arguments: argparse.Namespace) -> int:
    """Place and price the policy."""
    if has_stages(arguments):
        from planner.commands.pipelines import estimated  # noqa: PLC0415  what other plans do without

        return deliver(estimated(arguments, policy_of), arguments)
    problem = problem_of(arguments)
    return deliver(estimate(problem, policy_of(problem, arguments)), arguments)


def policy_of(problem: Problem, arguments: argparse.Namespace) -> Policy:
    """The policy that `add_policy`'s flags describe."""
    weights, cache, activations = _splits(arguments.percent)
    return Policy(
        gpu_batch_size=arguments.gpu_batch_size,
        num_gpu_batches=arguments.num_gpu_batches,
        weights=weights,
        cache=cache,
        activations=activations,
        weight_bits=_bits(arguments.weight_bits),
        kv_bits=_bits(arguments.kv_bits),
        cpu_attention=1.0 if arguments.cpu_attention == "on" else 0.0,
        prefill_rows=problem.prefill_rows(arguments.gpu_batch_size),
        io_threads=problem.rates.io_threads,
        attention_threads=problem.rates.attention_threads,
    )


def changed_policy(problem: Problem, policy: Policy, arguments: argparse.Namespace) -> Policy:
    """A policy but for what `add_policy`'s flags say otherwise."""
    size = arguments.gpu_batch_size
    if size not in (None, policy.gpu_batch_size):
        policy = replace(policy, gpu_batch_size=size, prefill_rows=problem.prefill_rows(size))
    if arguments.num_gpu_batches is not None:
        policy = replace(policy, num_gpu_batches=arguments.num_gpu_batches)
    if arguments.percent:
        weights, cache, activations = _splits(arguments.percent)
        policy = replace(policy, weights=weights, cache=cache, activations=activations)
    if arguments.weight_bits:
        policy = replace(policy, weight_bits=_bits(arguments.weight_bits))
    if arguments.kv_bits:
        policy = replace(policy, kv_bits=_bits(arguments.kv_bits))
    if arguments.cpu_attention:
        policy = replace(policy, cpu_attention=1.0 if arguments.cpu_attention == "on" else 0.0)
    return policy


def _splits(percent: Sequence[float]) -> tuple[Split, Split, Split]:
    """Of weights, cache and activations, from FlexGen's six percents."""
    wg, wc, cg, cc, ag, ac = percent
    return _split("weights", wg, wc), _split("cache", cg, cc), _split("activations", ag, ac)


def _bits(text: str) -> Bits:
    return 4 if text == "4" else 16


def _split(name: str, gpu: float, cpu: float) -> Split:
    """A split from two percents; what is left is on disk."""
    if gpu < 0 or cpu < 0 or gpu + cpu > 100 + 1e-6:
        raise UserError(
            f"--percent for {name} is {gpu:g} on gpu and {cpu:g} on cpu, {gpu + cpu:g} together; "
            "each must be at least 0 and both together at most 100"
        )
    return Split(gpu=gpu / 100, cpu=cpu / 100, disk=max(0.0, 1 - (gpu + cpu) / 100))

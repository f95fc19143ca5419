"""Flags that say what is to be generated, and the workload they describe."""

from __future__ import annotations

import argparse
from pathlib import Path

from hwprofiles.errors import UserError
from planner.model import ModelSpec
from planner.workload import Workload

_PROMPT_LEN, _GEN_LEN = 512, 32


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Lengths and their number, or a file of prompts that has them."""
    parser.add_argument(
        "--prompt-len", type=int, metavar="TOKENS", help=f"of every prompt (default: {_PROMPT_LEN})"
    )
    parser.add_argument(
        "--gen-len",
        type=int,
        default=_GEN_LEN,
        metavar="TOKENS",
        help=f"to generate; with --input, for lines that name no max_tokens (default: {_GEN_LEN})",
    )
    parser.add_argument(
        "--num-prompts",
        type=int,
        metavar="N",
        help="prompts in all (default: as many as the best block wants)",
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="prompts of the job, JSONL as `executor run` takes them: their number and lengths are planned for",
    )
    parser.add_argument(
        "--model-path",
        metavar="DIR",
        help="checkpoint directory whose tokenizer counts --input (default: that of --model)",
    )


def workload_of(arguments: argparse.Namespace, model: ModelSpec) -> Workload:
    """The workload that `add_workload`'s flags describe; a mistake in the input is told with its line."""
    if arguments.input is not None:
        return _of_input(arguments, model)
    if arguments.model_path is not None:
        raise UserError(
            "--model-path names the tokenizer that counts --input; give --input too, or leave it out"
        )
    prompt_len = _PROMPT_LEN if arguments.prompt_len is None else arguments.prompt_len
    return Workload(prompt_len=prompt_len, gen_len=arguments.gen_len, num_prompts=arguments.num_prompts)


def _of_input(arguments: argparse.Namespace, model: ModelSpec) -> Workload:
    from planner.prompts import read_requests  # noqa: PLC0415  with tokenizers, which other plans do without
    from planner.tokenizer import PromptTokenizer  # noqa: PLC0415

    for flag in ("prompt_len", "num_prompts"):
        if getattr(arguments, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')} is counted from --input; give one of them")
    if arguments.gen_len < 1:
        raise UserError(f"--gen-len is {arguments.gen_len}; generate at least 1 token")
    directory = Path(arguments.model_path or arguments.model).expanduser()
    if not directory.is_dir():
        raise UserError(
            f"--input is counted by the checkpoint's tokenizer, and {directory} is not a directory; "
            "give --model-path DIR, or --prompt-len, --gen-len and --num-prompts instead of --input"
        )
    requests = read_requests(
        arguments.input,
        PromptTokenizer(directory).encode,
        default_max_tokens=arguments.gen_len,
        max_positions=model.max_positions,
    )
    lengths = [(len(request.prompt_ids), request.max_tokens) for request in requests]
    return Workload.of_lengths(lengths, default_gen_len=arguments.gen_len)

"""The flags of pipelines, which search and estimate share; pipelines.py is what the two do with them."""

from __future__ import annotations

import argparse


def add_stages(parser: argparse.ArgumentParser, *, fixed: bool) -> None:
    """Stages, hosts and how hidden states travel; with a `fixed` policy also its waves."""
    kinds = "N" if fixed else "N|auto"
    what = "ranks that share the layers, each with a GPU of its own where the host has any (default: 1)"
    parser.add_argument("--stages", default="1", metavar=kinds, help=what)
    if fixed:
        parser.add_argument(
            "--num-waves",
            type=int,
            metavar="W",
            help="parts of the block that follow one another through the stages (default: as many as stages)",
        )
    parser.add_argument(
        "--hosts",
        nargs="+",
        default=[],
        metavar="HW",
        help="hardware profiles of further hosts, in the order of their ranks",
    )
    parser.add_argument(
        "--comm-device",
        choices=("cpu", "cuda", "auto"),
        default="auto",
        help="hidden states travel through host memory, or from GPU to GPU (default: where that was measured)",
    )


def has_stages(arguments: argparse.Namespace) -> bool:
    """Whether a pipeline is asked for."""
    return str(arguments.stages) != "1" or bool(arguments.hosts)

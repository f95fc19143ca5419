"""Runs FlexGen's own benchmark and reads its timers."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

from flexgen import flex_opt
from flexgen.timer import timers
from flexgen.utils import project_decode_latency

from benchmarks.peers.base import PeerFigures, PeerJob
from benchmarks.peers.flexgen import FlexGenSetting, flexgen_arguments
from benchmarks.peers.workers.base import figures, serve
from hwprofiles.yaml_io import from_plain

_PAD, _WORDS = 1, (2, 32826, 16, 5, 812, 343, 9)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a tokenizer returns."""

    input_ids: list[list[int]]


class Tokenizer:
    """In place of OPT's tokenizer: "Paris is the capital city of", padded on the left."""

    @classmethod
    def from_pretrained(cls, name: str, **_: object) -> Tokenizer:
        """As transformers' AutoTokenizer; nothing is loaded."""
        return cls()

    def __call__(self, prompts: list[str], *, padding: str, max_length: int) -> Encoded:
        """The same ids for every prompt."""
        ids = [_PAD] * (max_length - len(_WORDS)) + list(_WORDS)
        return Encoded([ids for _ in prompts])


def run(job: PeerJob) -> PeerFigures:
    """One block."""
    setting = from_plain(job.setting, FlexGenSetting, "flexgen")
    flex_opt.AutoTokenizer = Tokenizer
    parser = argparse.ArgumentParser()
    flex_opt.add_parser_arguments(parser)
    flex_opt.run_flexgen(parser.parse_args(flexgen_arguments(job, setting)))
    return figures_of_costs(job, setting, timers("generate").costs)


def figures_of_costs(job: PeerJob, setting: FlexGenSetting, costs: list[float]) -> PeerFigures:
    """From the seconds of each token; the first is prefill."""
    is_projected = setting.cut_gen_len is not None
    times = [0.0, *itertools.accumulate(costs)]
    if is_projected:
        decode_s = float(project_decode_latency(costs, job.prompt_len, job.gen_len))
        times = [0.0, costs[0], costs[0] + decode_s]
    num_prompts = setting.gpu_batch_size * setting.num_gpu_batches
    return figures(num_prompts, times, "flexgen", is_projected=is_projected)


if __name__ == "__main__":
    serve(run)

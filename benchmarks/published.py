"""What others have published, run by run, and what the planner says of the same policy: published.yaml."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.yaml_io import from_plain, load_yaml
from planner.advise import estimate
from planner.commands.estimate import add_flags, policy_of
from planner.commands.options import problem_of
from planner.plan import PHASES, Plan
from planner.policy import Bits

PUBLISHED = Path(__file__).with_name("published.yaml")
GEN_LEN = 32
_LANES = ("h2d", "d2h", "gpu", "cpu", "disk_read", "disk_write")
"""Issuing goes on beside them."""
_ALIKE = 1.02
"""Published figures nearer to each other than this have no order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One measured figure of another system, and its policy in FlexGen's words."""

    system: str
    model: str
    prompt_len: int
    tokens_per_s: float
    percent: str
    placed: str | None = None
    """What FlexGen makes of the percents, where that is not what they say."""
    gpu_batch_size: int
    num_gpu_batches: int = 1
    weight_bits: Bits = 16
    kv_bits: Bits = 16
    cpu_attention: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Of `planner estimate`; FlexGen leaves nothing to other processes."""
        attention = ("--cpu-attention", "on") if self.cpu_attention else ()
        bits = [("--weight-bits", "4")] * (self.weight_bits == 4) + [("--kv-bits", "4")] * (self.kv_bits == 4)
        return (
            *("--model", self.model, "--hw", "t4-host", "--headroom", "0%"),
            *("--prompt-len", str(self.prompt_len), "--gen-len", str(GEN_LEN)),
            *("--percent", *(self.placed or self.percent).split()),
            *("--gpu-batch-size", str(self.gpu_batch_size), "--num-gpu-batches", str(self.num_gpu_batches)),
            *(word for flag in bits for word in flag),
            *attention,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """published.yaml."""

    runs: tuple[Published, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A published run beside the plan of its policy."""

    published: Published
    plan: Plan | None
    """None: it does not fit the profile's machine."""
    failure: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        """With everything overlapped."""
        return self.plan.prediction.throughput_tokens_per_s if self.plan else None

    @property
    def one_by_one_tokens_per_s(self) -> float | None:
        """If no copy, no disk access and no computation went on beside another."""
        if self.plan is None:
            return None
        busy = (self.plan.prediction.of(phase).busy_s for phase in PHASES)
        seconds = sum(lanes.get(lane, 0.0) for lanes in busy for lane in _LANES)
        return self.plan.policy.block_size * GEN_LEN / seconds

    @property
    def disk_bytes_per_s(self) -> float:
        """At which decode's disk reads end when the published figure says that decode does, after our prefill."""
        assert self.plan is not None
        run_s = self.plan.policy.block_size * GEN_LEN / self.published.tokens_per_s
        tasks = self.plan.prediction.tasks
        num_bytes = sum(t.num_bytes for t in tasks if (t.phase, t.resource) == ("decode", "disk_read"))
        return num_bytes / (run_s - self.plan.prediction.prefill.seconds)


def load_published(path: Path = PUBLISHED) -> tuple[Published, ...]:
    """All runs, in the order of the file: by prompt and model, the fastest first."""
    return from_plain(load_yaml(path), PublishedFile, path.name).runs


def predict(published: Published) -> Predicted:
    """As the command with its flags does."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    arguments = parser.parse_args(published.flags)
    with redirect_stderr(io.StringIO()):  # warns that this host is not the profile's
        problem = problem_of(arguments)
    try:
        return Predicted(published=published, plan=estimate(problem, policy_of(problem, arguments)))
    except UserError as error:
        return Predicted(published=published, plan=None, failure=str(error))


def ordered_pairs(rows: Sequence[Predicted]) -> Iterator[tuple[Predicted, Predicted]]:
    """Runs of one model and prompt of which the first is published as the faster one, both with a prediction."""
    for first, second in combinations(rows, 2):
        a, b = first.published, second.published
        if (a.model, a.prompt_len) == (b.model, b.prompt_len) and first.plan and second.plan:
            faster, slower = (first, second) if a.tokens_per_s >= b.tokens_per_s else (second, first)
            if faster.published.tokens_per_s > _ALIKE * slower.published.tokens_per_s:
                yield faster, slower


def is_in_order(faster: Predicted, slower: Predicted) -> bool:
    """Whether the prediction has them in the published order."""
    return times(faster, slower) > 1


def times(faster: Predicted, slower: Predicted) -> float:
    """How many times as fast one is predicted as the other."""
    assert faster.tokens_per_s
    assert slower.tokens_per_s
    return faster.tokens_per_s / slower.tokens_per_s

"""The sentences of docs/flexgen.md: what was compared, where the two differ, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import fill

from benchmarks.published import Predicted, is_in_order, ordered_pairs, times
from planner.plan import Plan

HEAD = """# FlexGen's own numbers

Written by `python -m benchmarks.published_page` from benchmarks/published.yaml and the planner; a test holds the page
to what the planner says now.

FlexGen's authors measured three models on one T4 (16 GB) in a host with 208 GB of memory and an SSD of 1.5 TB, and
published the policies. Here is what `planner estimate` predicts for *our* executor on that machine with the same
policies. The profile `t4-host` has the published figures of its link, disk and memory, and two constants that
FlexGen's authors fitted to it, the rate of large matrix products and that of attention on the CPU. We fitted nothing
to the figures below, and had no T4 to run our executor on: this page compares their measurements with our predictions,
not with our measurements. Those are in [performance.md](performance.md).

* **published**: generated tokens per second, as they measured it. Of prompts of 256 only their own are published.
* **predicted**: what our cost model says of their policy, with everything overlapped that can be.
* **one by one**: the same work if no copy, no disk access and no computation went on beside another.
"""
WHY = """## Where the two differ, and why

* **Overlap.** FlexGen starts a step's copies beside its computation and then waits for all of them, for every gpu
  batch of every layer (`sync` in `generation_loop_overlap_multi_batch`), and attention and MLP are layers of their own:
  while an MLP computes there is no cache to load, and the longest part of each step is waited for. Ours waits only for
  what a task needs. For OPT-30B, where weights, cache and attention on the CPU are all of weight, the published figures
  lie between "one by one" and "predicted", as they should. A step's wait is an overhead that we do not have.
* **Pageable memory.** With `--pin-weight 0`, as in all cases of OPT-175B, FlexGen copies weights from pageable memory,
  at about half the link's rate (6 instead of 12 GB/s in the profile). Ours registers memory at its exact size and never
  copies from pageable memory.
* **4-bit weights are unpacked for each gpu batch** (`decompress` in `mha` and `mlp`, pytorch_backend.py), so three
  times a layer where there are three gpu batches; ours once. OPT-175B in 4 bits, which has this and pageable copies,
  was measured below "one by one".
* **Storing.** The constants that FlexGen's authors fitted have the cache going from GPU to host at 0.97 GiB/s and
  hidden states at 4.82, with 12.89 the other way (experimental/cost_model.py). Ours copies the rows of a gpu batch in
  one piece either way, and is predicted at the link's rate.
"""

UNPACKING = """
Unpacking 4 bits is the reason: the formulas charge the plain steps of `quantize.py`, 27 bytes moved for each
value and the value itself, and with everything on the GPU nothing hides them. The Triton kernels that the executor has
for a T4 move a tenth of that; no T4 has been measured with them, and the formulas do not know of them yet.
"""
NOT_ENOUGH = (
    "FlexGen's cost model counts 204 GiB of host memory for this machine, so its 208 GB are probably GiB; the "
    "profile takes them for GB"
)
SEARCHED = """## FlexGen's policies beside those our search picks

For prompts of 512, with the bits that FlexGen used, from the same profile and the same formulas. Splits are percent on
gpu / cpu / disk as placed.
"""


def order(rows: Sequence[Predicted]) -> Iterator[str]:
    """How many pairs are in the published order, and which are not."""
    pairs = list(ordered_pairs(rows))
    late = [pair for pair in pairs if not is_in_order(*pair)]
    yield _filled(
        f"Of {len(pairs)} pairs of runs of one model and prompt whose published figures differ by more than 2%, "
        f"{len(pairs) - len(late)} are predicted in the published order."
    )
    if late:
        yield "\n".join(["", *map(_reversed, late), UNPACKING.rstrip()])
    for row in rows:
        if row.failure:
            named = f"{row.published.model}, {row.published.prompt_len}, {row.published.system}"
            yield "\n" + _filled(f"{named} does not fit: {row.failure}. {NOT_ENOUGH}.")


def _filled(text: str) -> str:
    """Lines of the page's width; those of a point in a list are indented."""
    return fill(text, 118, subsequent_indent="  " * text.startswith("*"), break_on_hyphens=False)


def _reversed(pair: tuple[Predicted, Predicted]) -> str:
    faster, slower = (row.published for row in pair)
    published = faster.tokens_per_s / slower.tokens_per_s
    return (
        f"* {faster.model}, {faster.prompt_len}: {faster.system} is published as {published:.2f} times "
        f"{slower.system}, predicted as {times(*pair):.2f}."
    )


def baselines(rows: Sequence[Predicted]) -> str:
    """What a pass over OPT-30B takes those who stream layers without a block."""
    streamed = [row for row in rows if row.published.model == "opt-30b" and not is_flexgen(row)]
    took = " and ".join(
        f"{row.published.system} {row.published.gpu_batch_size / row.published.tokens_per_s:.1f} s"
        for row in streamed
    )
    link_s = max(row.plan.prediction.prefill.busy_s["h2d"] for row in streamed if row.plan)
    return _filled(
        f"* **Streaming for few sequences.** A pass over OPT-30B took {took}, on average; the link needs "
        f"{link_s:.1f} s for its weights. With 8 and 4 sequences there is little else to wait for, so the rest is the "
        "way the weights go."
    )


def disk(rows: Sequence[Predicted]) -> str:
    """Where ours is predicted slower than FlexGen was."""
    bound = [row for row in rows if row.plan and row.plan.prediction.decode.binding == "disk_read"]
    theirs = [row for row in bound if is_flexgen(row)]
    rates = " and ".join(f"{row.disk_bytes_per_s / 1e9:.1f}" for row in theirs)
    prompts = " and ".join(str(row.published.prompt_len) for row in theirs)
    return _filled(
        "* **The disk.** OPT-175B in 16 bits is predicted slower than it was measured. Nearly all of its decode is "
        "reading from disk, which the profile puts at 2 GB/s. To have measured what they did, FlexGen must have had "
        f"the bytes of its policy at {rates} GB/s, for prompts of {prompts}: nearly the same rate twice. So that disk "
        "was faster, or the page cache helped both runs alike: FlexGen maps its files, ours reads past the cache."
    )


def is_flexgen(row: Predicted) -> bool:
    return row.published.system.startswith("FlexGen")


def compared(system: str, theirs: Plan, ours: Plan) -> str:
    """What the search gains over a system's published policy, and what both read from disk."""
    gain = ours.prediction.throughput_tokens_per_s / theirs.prediction.throughput_tokens_per_s
    read = [f"{_disk_gb_per_sequence(plan):.0f} GB" for plan in (theirs, ours)]
    return _filled(
        f"* {theirs.model.name}, {system}: the search's plan is predicted {gain:.2f} times as fast as the published "
        f"policy. In decode, disk reads are {read[0]} a sequence in FlexGen's policy and {read[1]} in ours."
    )


def _disk_gb_per_sequence(plan: Plan) -> float:
    tasks = plan.prediction.tasks
    num_bytes = sum(
        task.num_bytes for task in tasks if (task.phase, task.resource) == ("decode", "disk_read")
    )
    return num_bytes / plan.policy.block_size / 1e9

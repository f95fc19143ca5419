"""FlexGen 0.1.8: the policy given as percents, with its own benchmark of dummy weights."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.base import Peer, PeerJob


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexGenSetting:
    """What may be chosen."""

    percent: str
    """Weights on GPU and CPU, cache on GPU and CPU, activations on GPU and CPU; the rest is on disk."""
    gpu_batch_size: int
    num_gpu_batches: int
    compress: bool = False
    """4-bit weights and cache, in groups of 64."""
    cpu_cache_compute: bool = False
    pin_weight: bool = True
    cut_gen_len: int | None = None
    """Generate only so many tokens and project the rest, as FlexGen does; None: all of them."""


FLEXGEN = Peer(
    name="flexgen",
    packages=("flexgen==0.1.8",),
    worker="benchmarks.peers.workers.flexgen",
    setting=FlexGenSetting,
    how=(
        "its own benchmark (flexgen.flex_opt) with --path _DUMMY_, overlap on, attention and MLP as separate layers, "
        "its defaults; a stand-in for the tokenizer, which it would download, gives the same prompt of a few words "
        "padded to the prompt length. Policies are those that its paper publishes or that gave the most in a search "
        "by hand; weights are pinned unless the host's memory is too small for that, as torch's pinned allocator "
        "rounds every tensor up to a power of two"
    ),
)


def flexgen_arguments(job: PeerJob, setting: FlexGenSetting) -> list[str]:
    """The command line of flexgen.flex_opt."""
    arguments = ["--model", f"facebook/{job.model_name}", "--path", "_DUMMY_", "--offload-dir", job.work_dir]
    arguments += ["--prompt-len", str(job.prompt_len), "--gen-len", str(job.gen_len)]
    arguments += ["--percent", *setting.percent.split()]
    arguments += ["--gpu-batch-size", str(setting.gpu_batch_size)]
    arguments += ["--num-gpu-batches", str(setting.num_gpu_batches)]
    arguments += ["--pin-weight", str(setting.pin_weight), "--log-file", f"{job.work_dir}/flexgen.log"]
    arguments += ["--compress-weight", "--compress-cache"] if setting.compress else []
    arguments += ["--cpu-cache-compute"] if setting.cpu_cache_compute else []
    return arguments + (["--cut-gen-len", str(setting.cut_gen_len)] if setting.cut_gen_len else [])

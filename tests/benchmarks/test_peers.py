"""Peers in processes of their own, and what is made of their figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers.base import Peer, PeerJob, PeerRun, run_peer
from benchmarks.peers.factory import PEERS
from benchmarks.peers.flexgen import FlexGenSetting, flexgen_arguments
from benchmarks.peers.install import install
from benchmarks.peers.transformers import TransformersSetting
from benchmarks.peers.zero_inference import ZeroSetting, deepspeed_config
from hwprofiles.errors import UserError

WORKER = """
import json, sys
job = json.load(open(sys.argv[1]))
print("working on", job["model_name"])
{body}
json.dump({{"num_prompts": 2, "prefill_s": 1.0, "decode_s": 3.0, "is_projected": False, "peak_gpu_bytes": None,
           "versions": {{"fake": "1"}}}}, open(sys.argv[2], "w"))
"""
TINY_OPT = {
    "model_type": "opt",
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
}


def job(tmp_path: Path, setting: dict[str, object]) -> PeerJob:
    return PeerJob(
        model_name="opt-30b",
        config=TINY_OPT,
        dtype="float32",
        prompt_len=16,
        gen_len=4,
        gpu_bytes=None,
        context_bytes=0,
        checkpoint=None,
        work_dir=str(tmp_path),
        setting=setting,
    )


def run_fake(tmp_path: Path, body: str) -> PeerRun:
    """A peer whose package is a file in its own directory."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "fake_worker.py").write_text(WORKER.format(body=body))
    peer = Peer(name="fake", packages=(), worker="fake_worker", setting=TransformersSetting, how="")
    return run_peer(peer, job(tmp_path, {"batch_size": 2}), packages, limit_bytes=None, timeout_s=60)


def test_a_peer_s_figures_come_back(tmp_path: Path) -> None:
    """Its packages are found, its throughput is that of both phases."""
    run = run_fake(tmp_path, "")
    assert run.error is None
    assert run.figures is not None
    assert run.figures.versions == {"fake": "1"}
    assert run.throughput_tokens_per_s == 2 * 4 / (1.0 + 3.0)
    assert run.ran.log.strip() == "working on opt-30b"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise MemoryError('no more')", "MemoryError: no more"),
        ("import os; os.kill(os.getpid(), 9)", "killed"),
    ],
)
def test_a_peer_that_fails_says_why(tmp_path: Path, body: str, said: str) -> None:
    """The end of what it printed, or what ended it."""
    run = run_fake(tmp_path, body)
    assert (run.figures, run.throughput_tokens_per_s) == (None, None)
    assert run.error is not None
    assert said in run.error


def test_transformers_is_run_as_it_is(tmp_path: Path) -> None:
    """The one peer that needs no package: a whole run of a tiny model, both of its phases timed."""
    run = run_peer(
        PEERS["transformers"],
        job(tmp_path, {"batch_size": 3}),
        tmp_path,
        limit_bytes=None,
        timeout_s=120,
    )
    assert run.figures is not None, run.error
    assert run.figures.num_prompts == 3
    assert run.figures.prefill_s > 0
    assert run.figures.decode_s > 0
    assert not run.figures.is_projected


def test_flexgen_is_told_all_that_matters(tmp_path: Path) -> None:
    """Its own flags: dummy weights, our lengths, the percents, 4-bit and what is cut only where asked for."""
    plain = FlexGenSetting(percent="20 80 0 100 0 100", gpu_batch_size=48, num_gpu_batches=4)
    words = flexgen_arguments(job(tmp_path, {}), plain)
    assert words[words.index("--percent") + 1 :][:6] == ["20", "80", "0", "100", "0", "100"]
    assert words[words.index("--model") + 1] == "facebook/opt-30b"
    assert words[words.index("--path") + 1] == "_DUMMY_"
    assert (words[words.index("--prompt-len") + 1], words[words.index("--gen-len") + 1]) == ("16", "4")
    assert not {"--compress-weight", "--compress-cache", "--cut-gen-len", "--cpu-cache-compute"} & set(words)
    short = FlexGenSetting(
        percent="0 100 0 100 0 100",
        gpu_batch_size=16,
        num_gpu_batches=1,
        compress=True,
        pin_weight=False,
        cut_gen_len=8,
    )
    words = flexgen_arguments(job(tmp_path, {}), short)
    assert {"--compress-weight", "--compress-cache"} <= set(words)
    assert words[words.index("--cut-gen-len") + 1] == "8"
    assert words[words.index("--pin-weight") + 1] == "False"


def test_deepspeed_s_config_offloads_pinned_weights() -> None:
    """Stage 3, parameters on the CPU, in the model's dtype."""
    config = deepspeed_config(ZeroSetting(batch_size=8), hidden_size=10, dtype="float16")
    assert config["fp16"] == {"enabled": True}
    assert config["bf16"] == {"enabled": False}
    assert config["train_batch_size"] == 8
    zero = config["zero_optimization"]
    assert isinstance(zero, dict)
    assert (zero["stage"], zero["offload_param"]) == (3, {"device": "cpu", "pin_memory": True})


def test_packages_come_from_wheels_without_a_network(tmp_path: Path) -> None:
    """An empty folder of wheels is a user's mistake, said in one line with the remedy."""
    peer = Peer(name="fake", packages=("flexgen",), worker="", setting=TransformersSetting, how="")
    with pytest.raises(UserError, match=r"pip could not install flexgen: .*README") as error:
        install(peer, tmp_path / "packages", tmp_path)
    assert "\n" not in str(error.value)

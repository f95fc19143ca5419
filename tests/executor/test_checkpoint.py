"""Checkpoints: every spelling of the parameters is found, every fault is one line before loading begins."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from executor.checkpoint import Checkpoint, named_tensors
from hwprofiles.errors import UserError
from planner.model import ModelSpec
from tests.executor.tiny import random_model, save

Tensors = dict[str, torch.Tensor]


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Replace what the single file of a checkpoint holds."""
    file = directory / "model.safetensors"
    save_file({key: value.contiguous() for key, value in change(load_file(file)).items()}, file)


def values(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """All values of a parameter, flat."""
    spec = next(tensor for found, tensor in named_tensors(checkpoint.model) if found == name)
    dtype = checkpoint.dtype(name)
    out = torch.empty(spec.numel * dtype.itemsize, dtype=torch.uint8)
    stream = checkpoint.stream(name)
    stream.fill(out.numpy().data)
    stream.close()
    return out.view(dtype)


def assert_all_equal(directory: Path, spec: ModelSpec, expected: Tensors) -> None:
    """Every parameter of the checkpoint has the model's values."""
    checkpoint = Checkpoint(directory, spec)
    for name, _ in named_tensors(spec):
        assert torch.equal(values(checkpoint, name), expected[name].flatten()), name


def saved(directory: Path, family: str, **changes: object) -> tuple[ModelSpec, Tensors]:
    """A checkpoint of one file, its ModelSpec, and the model's parameters."""
    model = random_model(family, **changes)
    return save(model, directory), {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neox", "llama", "bloom"])
@pytest.mark.parametrize("prefix", ["missing", "doubled"])
def test_base_model_prefix(tmp_path: Path, family: str, prefix: str) -> None:
    """Checkpoints of a base model lack the first part of each name; others have it twice."""
    spec, expected = saved(tmp_path, family)
    base = spec.layer_prefix.partition(".")[0] + "."

    def rename(key: str) -> str:
        return key.removeprefix(base) if prefix == "missing" else base + key

    rewrite(tmp_path, lambda tensors: {rename(key): value for key, value in tensors.items()})
    assert_all_equal(tmp_path, spec, expected)


def test_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    """Masks and rotary frequencies that old versions saved are nobody's parameters."""
    spec, expected = saved(tmp_path, "gpt_neox")
    extra = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    }
    rewrite(tmp_path, lambda tensors: tensors | extra)
    assert_all_equal(tmp_path, spec, expected)


def test_fused_experts_are_taken_as_they_are(tmp_path: Path) -> None:
    """A checkpoint may also hold the experts under transformers 5's own names."""
    spec, expected = saved(tmp_path, "mixtral")
    rewrite(tmp_path, lambda _: dict(expected))
    assert_all_equal(tmp_path, spec, expected)


def test_missing_expert_is_named(tmp_path: Path) -> None:
    """Of experts stored one by one, none may be missing."""
    spec, _ = saved(tmp_path, "mixtral")
    key = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    rewrite(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if k != key})
    with pytest.raises(UserError, match=re.escape(f"tensor {key} is missing")):
        Checkpoint(tmp_path, spec)


def test_tied_pair_under_the_heads_name(tmp_path: Path) -> None:
    """A tied embedding may be stored once, as the head."""
    spec, expected = saved(tmp_path, "opt")
    name = "model.decoder.embed_tokens.weight"
    rewrite(tmp_path, lambda tensors: {("lm_head.weight" if k == name else k): v for k, v in tensors.items()})
    assert_all_equal(tmp_path, spec, expected)


def test_tied_pair_stored_twice(tmp_path: Path) -> None:
    """A head that is stored beside its tied embedding must have the same values."""
    spec, expected = saved(tmp_path, "llama", tie_word_embeddings=True)
    head = expected["model.embed_tokens.weight"].clone()
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": head})
    assert_all_equal(tmp_path, spec, expected)
    head[-1, -1] += 1
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": head})
    with pytest.raises(UserError, match=r"ties lm_head\.weight .* set tie_word_embeddings to false"):
        Checkpoint(tmp_path, spec)


def test_wrong_shape(tmp_path: Path) -> None:
    """Both shapes are named."""
    spec, _ = saved(tmp_path, "opt")
    key = "model.decoder.layers.1.fc1.weight"
    rewrite(tmp_path, lambda tensors: tensors | {key: torch.zeros(64, 96)})
    with pytest.raises(UserError, match=r"layers\.1\.fc1\.weight has shape \[64, 96\].* needs \[96, 64\]"):
        Checkpoint(tmp_path, spec)


def test_missing_tensor(tmp_path: Path) -> None:
    """A parameter that no spelling finds is named."""
    spec, _ = saved(tmp_path, "llama")
    key = "model.layers.2.mlp.up_proj.weight"
    rewrite(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if k != key})
    with pytest.raises(UserError, match=re.escape(f"tensor {key} is missing")):
        Checkpoint(tmp_path, spec)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated(tmp_path: Path, length: int) -> None:
    """A file cut anywhere, in its header or its last tensor, is refused before anything is loaded."""
    spec, _ = saved(tmp_path, "opt")
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:length])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated or damaged \(.*\); download"):
        Checkpoint(tmp_path, spec)


@pytest.mark.parametrize("header", [b"{]", b"[]", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [2]}}'])
def test_malformed_header(tmp_path: Path, header: bytes) -> None:
    """A header that is no header is refused."""
    spec, _ = saved(tmp_path, "opt")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"truncated or damaged"):
        Checkpoint(tmp_path, spec)


def test_shard_cut_after_the_check(tmp_path: Path) -> None:
    """A file that shrinks while it is read is an error, not silence."""
    spec, _ = saved(tmp_path, "opt")
    checkpoint = Checkpoint(tmp_path, spec)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"truncated or damaged \(it ends at byte"):
        values(checkpoint, "model.decoder.embed_tokens.weight")


def test_missing_shard(tmp_path: Path) -> None:
    """A shard that the index names and the directory lacks is named."""
    model = random_model("opt")
    spec = save(model, tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"1 of the {len(shards)} files .* missing, first {shards[1].name}"):
        Checkpoint(tmp_path, spec)


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}'])
def test_malformed_index(tmp_path: Path, index: str) -> None:
    """An index that is none is refused."""
    spec, _ = saved(tmp_path, "opt")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="not a safetensors index"):
        Checkpoint(tmp_path, spec)


def test_pickles_only(tmp_path: Path) -> None:
    """A checkpoint of pickles names the way to convert it; an empty directory what is looked for."""
    spec, _ = saved(tmp_path, "opt")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        Checkpoint(tmp_path, spec)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds pytorch_model\.bin but no safetensors; .*save_pretrained"):
        Checkpoint(tmp_path, spec)


def test_quantised_tensors(tmp_path: Path) -> None:
    """Integers in the place of weights are refused with the remedy."""
    spec, expected = saved(tmp_path, "opt")
    key = "model.decoder.layers.0.fc1.weight"
    rewrite(tmp_path, lambda tensors: tensors | {key: expected[key].to(torch.int8)})
    with pytest.raises(UserError, match=r"fc1\.weight has dtype I8.*use the unquantised checkpoint"):
        Checkpoint(tmp_path, spec)


@pytest.mark.parametrize(
    ("key", "value"), [("num_attention_heads", 8), ("ffn_dim", 128), ("activation_function", "gelu")]
)
def test_config_of_another_model(tmp_path: Path, key: str, value: object) -> None:
    """The first key that differs is named, also one that changes no shape."""
    spec, _ = saved(tmp_path, "opt")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"config\.json has {key} {value!r}, the plan .*; plan again"):
        Checkpoint(tmp_path, spec)


def test_another_family(tmp_path: Path) -> None:
    """A plan for one family does not run on another's checkpoint."""
    spec, _ = saved(tmp_path / "opt", "opt")
    saved(tmp_path / "llama", "llama")
    with pytest.raises(UserError, match=r"config\.json has model_type 'llama', the plan for opt has 'opt'"):
        Checkpoint(tmp_path / "llama", spec)


def test_keys_without_effect_may_differ(tmp_path: Path) -> None:
    """Training keys, token ids and defaults that are left out make no other model."""
    spec, expected = saved(tmp_path, "opt")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | {"attention_dropout": 0.3, "eos_token_id": 9, "init_std": 1.0}
    del config["do_layer_norm_before"]
    file.write_text(json.dumps(config))
    assert_all_equal(tmp_path, spec, expected)


def test_not_a_directory(tmp_path: Path) -> None:
    """A path that is no directory, or one without a config, is named."""
    spec, _ = saved(tmp_path / "model", "opt")
    with pytest.raises(UserError, match="nowhere: not a directory"):
        Checkpoint(tmp_path / "nowhere", spec)
    with pytest.raises(UserError, match=r"holds no config\.json"):
        Checkpoint(tmp_path, spec)

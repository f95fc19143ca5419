"""ModelSpec against transformers' own modules, the field report's sizes, and what a user gets wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hwprofiles.errors import UserError
from hwprofiles.units import GIB
from hwprofiles.yaml_io import from_plain, to_plain
from planner.families import FAMILIES
from planner.model import ModelSpec, known_models, load_model, spec_from_config

_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, **_HEADS}
_OPT = {"model_type": "opt", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64}
_OPT |= {"num_attention_heads": 4, "max_position_embeddings": 64}
_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_FALCON = {"model_type": "falcon", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
_FALCON |= {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
_NEOX = {key: value for key, value in _SMALL.items() if key != "num_key_value_heads"} | {
    "model_type": "gpt_neox"
}
_BLOOM = {"model_type": "bloom", "vocab_size": 96, "n_layer": 2, "n_head": 4}

TINY: dict[str, dict[str, object]] = {
    "opt": _OPT,
    "opt-350m-like": {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "opt-bare": {**_OPT, "enable_bias": False, "layer_norm_elementwise_affine": False},
    "opt-untied": {**_OPT, "_remove_final_layer_norm": True, "tie_word_embeddings": False},
    "llama": {**_SMALL, "model_type": "llama"},
    "llama-biases-tied": {
        **_SMALL, "model_type": "llama",
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
    },
    "llama-mha-head-dim": {**_SMALL, "model_type": "llama", "num_key_value_heads": None, "head_dim": 16},
    "mistral": {**_SMALL, "model_type": "mistral", "sliding_window": 8},
    "mistral-full": {**_SMALL, "model_type": "mistral", "sliding_window": None, "head_dim": None},
    "qwen2": {**_SMALL, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-sliding": {
        **_SMALL, "model_type": "qwen2",
        "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2,
    },
    "qwen3": {**_SMALL, "model_type": "qwen3"},
    "qwen3-types": {
        **_SMALL, "model_type": "qwen3", "head_dim": 16, "use_sliding_window": True, "sliding_window": 8,
        "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    },
    "qwen3_moe": {**_SMALL, **_MOE, "model_type": "qwen3_moe"},
    "qwen3_moe-mixed": {
        **_SMALL, **_MOE, "model_type": "qwen3_moe", "decoder_sparse_step": 2, "head_dim": 16,
    },
    "qwen2_moe": {
        **_SMALL, **_MOE, "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 40, "mlp_only_layers": [1],
    },
    "mixtral": {**_SMALL, "model_type": "mixtral", "num_local_experts": 4, "sliding_window": 8},
    "gemma": {**_SMALL, "model_type": "gemma", "head_dim": 16},
    "gemma2": {**_SMALL, "model_type": "gemma2", "head_dim": 16, "sliding_window": 8},
    "phi3": {**_SMALL, "model_type": "phi3", "pad_token_id": 0, "sliding_window": 8},
    "gpt_neox": _NEOX,
    "gpt_neox-tied": {**_NEOX, "attention_bias": False, "tie_word_embeddings": True},
    "gpt2": _GPT2,
    "gpt2-inner-untied": {**_GPT2, "n_inner": 40, "tie_word_embeddings": False},
    "bloom": {**_BLOOM, "hidden_size": 32},
    "bloom-n-embed": {**_BLOOM, "n_embed": 16},
    "falcon": _FALCON,
    "falcon-grouped": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon-alibi": {**_FALCON, "multi_query": False, "parallel_attn": False, "alibi": True},
}  # fmt: skip

# Exact counts as model cards show them (from the safetensors): they hold models.yaml to the published shapes.
PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-6.7b": 6_658_473_984,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-27b": 27_227_128_320,
    "phi-3-mini": 3_821_079_552,
    "gpt2": 124_439_808,
    "bloom-560m": 559_214_592,
    "bloom-176b": 176_247_271_424,
}


def _build(config: Mapping[str, object], device: str) -> PreTrainedModel:
    """transformers' model of a config, on the meta device or in memory."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()


def _spec_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tensor.shape for tensor in spec.ends}
    for j, layer in enumerate(spec.layers):
        shapes |= {f"{spec.layer_prefix}.{j}.{tensor.name}": tensor.shape for tensor in layer.tensors}
    return shapes


def _assert_same_tensors(spec: ModelSpec, model: PreTrainedModel) -> None:
    parameters = dict(model.named_parameters())  # a tied tensor is listed once
    assert _spec_shapes(spec) == {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    assert spec.num_parameters == sum(tensor.numel() for tensor in parameters.values())
    assert [tensor.name for tensor in spec.ends] == [
        n for n in parameters if not n.startswith(spec.layer_prefix)
    ]
    for j in (0, spec.num_layers - 1):
        names = [name for name, _ in model.get_submodule(f"{spec.layer_prefix}.{j}").named_parameters()]
        assert [tensor.name for tensor in spec.layers[j].tensors] == names


def test_every_family_has_a_tiny_config() -> None:
    """The tests below leave no family out."""
    assert {config["model_type"] for config in TINY.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_tensors_of_tiny_configs_are_those_of_transformers(name: str) -> None:
    """Names, order, shapes and total of every family and its variants."""
    _assert_same_tensors(spec_from_config(name, TINY[name]), _build(TINY[name], "meta"))


@pytest.mark.parametrize("name", known_models())
def test_tensors_of_known_models_are_those_of_transformers(name: str) -> None:
    """Names, order, shapes and total of every known model at its full size."""
    spec = load_model(name)
    _assert_same_tensors(spec, _build(spec.config, "meta"))


@pytest.mark.parametrize("model_type", ["gemma", "gpt2", "llama", "mixtral", "qwen2_moe", "qwen3_moe"])
def test_missing_keys_take_the_defaults_of_the_config_class(model_type: str) -> None:
    """A config of nothing but its model_type."""
    config = {"model_type": model_type}
    _assert_same_tensors(spec_from_config(model_type, config), _build(config, "meta"))


@pytest.mark.parametrize("name", TINY)
def test_cache_and_windows_of_tiny_models_are_those_of_transformers(name: str) -> None:
    """Key and value widths come from a real forward; windows and the attention interface from the module."""
    config = TINY[name]
    spec = spec_from_config(name, config)
    model = _build(config, "cpu")
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True).past_key_values
    for layer in cache.layers:
        assert tuple(layer.keys.shape) == (1, spec.num_kv_heads, 3, spec.head_dim)
        assert tuple(layer.values.shape) == (1, spec.num_kv_heads, 3, spec.head_dim)
    assert spec.kv_bytes(1, 3, 4) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert spec.cpu_attention == model._supports_attention_backend
    for j, layer_spec in enumerate(spec.layers):
        blocks = model.get_submodule(f"{spec.layer_prefix}.{j}").modules()
        found = [block.sliding_window for block in blocks if hasattr(block, "sliding_window")]
        expected = found[0] if found else getattr(model.config, "sliding_window", None)
        assert layer_spec.sliding_window == (expected or None)  # some say 0 for no window


@pytest.mark.parametrize("name", [name for name in TINY if "moe" not in name and name != "mixtral"])
def test_dense_flops_are_twice_the_projections(name: str) -> None:
    """A dense token uses every matrix of the layer once, and all of them are quantizable."""
    spec = spec_from_config(name, TINY[name])
    block = _build(TINY[name], "meta").get_submodule(f"{spec.layer_prefix}.0")
    numel = sum(parameter.numel() for parameter in block.parameters() if parameter.dim() == 2)
    assert spec.layers[0].linear_flops_per_token == 2 * numel
    assert numel == sum(tensor.numel for tensor in spec.layers[0].tensors if tensor.quantizable)
    assert spec.layers[0].expert_numel == 0


def test_moe_counts_only_the_chosen_experts() -> None:
    """Mixtral: attention, router and 2 of 8 experts; the router stays out of quantisation."""
    layer = load_model("mixtral-8x7b").layers[0]
    expert = 3 * 4096 * 14336
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    assert layer.expert_numel == 8 * expert
    assert layer.linear_flops_per_token == 2 * (attention + 8 * 4096 + 2 * expert)
    assert (layer.num_experts, layer.experts_per_token, layer.intermediate_size) == (8, 2, 14336)
    assert not next(tensor for tensor in layer.tensors if tensor.name == "mlp.gate.weight").quantizable


def test_shared_expert_is_used_by_every_token() -> None:
    """Qwen 2 MoE: the shared expert and its gate count in full, the routed ones by the chosen share."""
    spec = spec_from_config("tiny", TINY["qwen2_moe"])
    sparse, dense = spec.layers[0], spec.layers[1]
    attention = 2 * 32 * 32 + 2 * 32 * 16
    assert sparse.linear_flops_per_token == 2 * (attention + 6 * 32 + 2 * 3 * 32 * 24 + 3 * 32 * 40 + 32)
    assert (sparse.expert_numel, sparse.intermediate_size) == (6 * 3 * 32 * 24, 40)
    assert (dense.expert_numel, dense.num_experts, dense.intermediate_size) == (0, 0, 48)


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_their_published_size(name: str) -> None:
    """The parameter counts of the model cards."""
    assert load_model(name).num_parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "weights_gib", "caches_gib", "hidden_gib"),
    [
        ("opt-30b", 55.803, {192: 133.875, 96: 66.938, 48: 33.469}, {192: 1.395}),
        ("opt-175b", 325.175, {16: 38.250}, {}),
        ("opt-6.7b", 12.386, {128: 34.000}, {}),
    ],
)
def test_sizes_of_the_field_report(
    name: str, weights_gib: float, caches_gib: dict[int, float], hidden_gib: dict[int, float]
) -> None:
    """Within 0.1% of what FlexGen prints; its weights leave out the table of positions, so here too."""
    spec = load_model(name)
    positions = next(tensor for tensor in spec.ends if tensor.name.endswith("embed_positions.weight"))
    assert (spec.weight_bytes(2) - 2 * positions.numel) / GIB == pytest.approx(weights_gib, rel=1e-3)
    for num_sequences, gib in caches_gib.items():
        assert spec.kv_bytes(num_sequences, 512 + 32, 2) / GIB == pytest.approx(gib, rel=1e-3)
    for num_sequences, gib in hidden_gib.items():
        assert spec.hidden_bytes(num_sequences, 512 + 32, 2) / GIB == pytest.approx(gib, rel=1e-3)


def test_identical_layers_are_one_object() -> None:
    """96 equal layers cost as much as one; Gemma 2 has two kinds."""
    assert len({id(layer) for layer in load_model("opt-175b").layers}) == 1
    gemma = load_model("gemma-2-9b").layers
    assert len({id(layer) for layer in gemma}) == 2
    assert [layer.sliding_window for layer in gemma[:4]] == [4096, None, 4096, None]


def test_head_and_dtype() -> None:
    """The head of OPT-350m is narrower than its hidden states; each family has its checkpoint's dtype."""
    assert load_model("opt-350m").head_numel == 50272 * 512
    assert load_model("llama-3-8b").head_numel == 128256 * 4096
    assert load_model("opt-30b").dtype == "float16"
    assert load_model("qwen3-8b").dtype == "bfloat16"
    assert load_model("opt-30b", "float32").dtype == "float32"
    assert spec_from_config("tiny", _OPT).dtype == "float32"
    assert spec_from_config("tiny", {**_OPT, "torch_dtype": "bfloat16"}).dtype == "bfloat16"


def test_positions() -> None:
    """OPT stops at its table, BLOOM nowhere."""
    assert load_model("opt-30b").max_positions == 2048
    assert load_model("gpt2").max_positions == 1024
    assert load_model("bloom-560m").max_positions is None


@pytest.mark.parametrize("name", ["opt-350m", "llama-3.1-8b", "gemma-2-2b", "mixtral-8x7b"])
def test_spec_survives_plain_data_and_its_config(name: str) -> None:
    """To dicts and back gives an equal spec, and so does building it again from name and config as JSON."""
    spec = load_model(name)
    assert from_plain(to_plain(spec), ModelSpec, name) == spec
    assert spec_from_config(spec.name, json.loads(json.dumps(dict(spec.config)))) == spec


def test_a_config_and_a_directory_give_the_same_model(tmp_path: Path) -> None:
    """What transformers saved is read by its path and by its directory, which gives the name."""
    directory = tmp_path / "my-gemma"
    AutoConfig.for_model(**TINY["gemma2"]).save_pretrained(directory)
    spec = load_model(str(directory))
    assert spec.name == "my-gemma"
    assert spec == load_model(str(directory / "config.json"))
    assert spec.layers == spec_from_config("tiny", TINY["gemma2"]).layers


def test_a_known_name_beside_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder wins over a known name only when it holds a config.json."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert load_model("gpt2").num_layers == 12
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(_GPT2))
    assert load_model("gpt2").num_layers == 2


def test_unknown_name_lists_near_matches() -> None:
    """A mistyped name is answered with the names it may have meant."""
    with pytest.raises(UserError, match=r"opt-30.*near matches: opt-30b.*checkpoint directory"):
        load_model("facebook/opt-30")
    with pytest.raises(UserError, match="known names: opt-125m"):
        load_model("zzz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "model_type 't5' is not supported; supported are bloom"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_size": "wide"}, "config key hidden_size is 'wide', expected an integer of 1 or more"),
        ({"num_hidden_layers": -1}, "config key num_hidden_layers is -1"),
        ({"mlp_bias": "no"}, "config key mlp_bias is 'no', expected true or false"),
        ({"hidden_size": 30}, "hidden size 30 is not a multiple of its 4 heads"),
        ({"num_key_value_heads": 3}, "4 heads are not a multiple of 3 kv heads"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported; supported are float32"),
        ({"dtype": ["float16"]}, "dtype ['float16'] is not supported"),
        ({"quantization_config": {"bits": 4}}, "the checkpoint is quantised"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention"]},
            "expected one entry for each of 4 layers",
        ),
        (
            {"model_type": "qwen3", "layer_types": 4},
            "config key layer_types is 4, expected a list of strings",
        ),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 1}, "expected a list of layer numbers"),
    ],
)
def test_a_wrong_config_is_named(change: dict[str, object], message: str) -> None:
    """One line that names the model, the key, the value and what is expected."""
    with pytest.raises(UserError, match="model mine: ") as caught:
        spec_from_config("mine", {**_SMALL, "model_type": "llama", **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "holds list"), (None, "holds no config.json")],
)
def test_a_broken_checkpoint_directory_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    """A directory without a config.json, or with one that is not a config."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path))


def test_importing_the_model_imports_no_torch() -> None:
    """The planner's floor: neither torch nor transformers, not even after loading a model."""
    code = (
        "import sys; from planner.model import load_model; load_model('opt-175b'); "
        "assert not {'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

"""ModelSpec: every tensor's shape by layer; from a known name, a config.json or a checkpoint directory."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from hwprofiles.errors import UserError
from hwprofiles.points import Dtype
from hwprofiles.yaml_io import load_yaml
from planner.families import FAMILIES
from planner.families.config import Config
from planner.families.tensors import LayerSpec, TensorSpec, is_after_layers, is_before_layers

__all__ = ["LayerSpec", "ModelSpec", "TensorSpec", "known_models", "load_model", "spec_from_config"]

_KNOWN = Path(__file__).with_name("models.yaml")
_DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model: the shapes that decide its bytes and its work."""

    name: str
    config: Mapping[str, object] = field(hash=False)
    """The transformers config, model_type included, as plain JSON values; the model can be built from it."""
    layer_prefix: str
    """Of the layers' parameters: "model.layers" in "model.layers.0.mlp.up_proj.weight"."""
    layers: tuple[LayerSpec, ...] = field(hash=False)
    ends: tuple[TensorSpec, ...] = field(hash=False)
    """Every parameter outside the layers, in the order of named_parameters; tied ones once."""
    tied: bool
    """The output head is the input embedding."""
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_numel: int
    """Elements of the output head; in every family its shape is that of the embedding, the first end."""
    max_positions: int | None
    """Longest sequence; None where the model sets no limit (ALiBi)."""
    dtype: Dtype
    """Of the checkpoint."""
    cpu_attention: bool
    """The family's attention goes through transformers' attention interface, so that it can be replaced."""
    first_layer: int = 0
    """In the whole model; above 0 for a pipeline stage's part of it."""
    has_embedding: bool = True
    """What stands before the layers is here, not on another stage."""
    has_head: bool = True
    elsewhere: tuple[TensorSpec, ...] = field(default=(), hash=False)
    """Ends that only other stages hold."""

    @property
    def is_whole(self) -> bool:
        """Whether both ends are here, as they are where there is no pipeline."""
        return self.has_embedding and self.has_head

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def kv_dim(self) -> int:
        """Elements of one token's key, or value, in one layer."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Exact count, tied tensors once."""
        return sum(layer.numel for layer in self.layers) + sum(tensor.numel for tensor in self.ends)

    def part(self, first: int, stop: int) -> ModelSpec:
        """Layers `first` up to `stop` with the ends that go with them: one stage of a pipeline.

        A head that is tied to the embedding stands on the first and on the last stage.
        """
        is_first, is_last = first == 0, stop == self.num_layers
        tied_here = self.tied and (is_first or is_last)
        here = [
            tensor
            for index, tensor in enumerate(self.ends)
            if (is_first and is_before_layers(tensor))
            or (is_last and (is_after_layers(tensor) or (tied_here and index == 0)))
        ]
        return replace(
            self,
            layers=self.layers[first:stop],
            ends=tuple(here),
            tied=tied_here,
            first_layer=first,
            has_embedding=is_first,
            has_head=is_last,
            elsewhere=tuple(tensor for tensor in self.ends if tensor not in here),
        )

    def layer_numel(self, j: int) -> int:
        """Elements of layer j."""
        return self.layers[j].numel

    def weight_bytes(self, bytes_per_element: float) -> int:
        """Bytes of all parameters."""
        return round(self.num_parameters * bytes_per_element)

    def kv_bytes(self, num_sequences: int, seq_len: int, bytes_per_element: float) -> int:
        """Bytes of keys and values of all layers; of a sliding window only what is inside it is kept."""
        kept = sum(layer.kept_tokens(seq_len) for layer in self.layers)
        return round(2 * kept * num_sequences * self.kv_dim * bytes_per_element)

    def hidden_bytes(self, num_sequences: int, seq_len: int, bytes_per_element: float) -> int:
        """Bytes of the hidden states between two layers."""
        return round(num_sequences * seq_len * self.hidden_size * bytes_per_element)


def known_models() -> tuple[str, ...]:
    """The names load_model knows, in the order of models.yaml."""
    return tuple(_known_configs())


def load_model(name_or_path: str, dtype: Dtype | None = None) -> ModelSpec:
    """A model by its known name, by a config.json, or by a checkpoint directory that holds one."""
    path = Path(name_or_path).expanduser()
    known = _known_configs()
    name = name_or_path.lower()
    if name in known and not (path / "config.json").is_file():
        return spec_from_config(name, known[name], dtype)
    if path.is_dir():
        return spec_from_config(path.resolve().name, _read_json(path / "config.json"), dtype)
    if path.is_file():
        resolved = path.resolve()
        name = resolved.parent.name if resolved.name == "config.json" else resolved.stem
        return spec_from_config(name, _read_json(path), dtype)
    raise _unknown_model(name_or_path, tuple(known))


def spec_from_config(name: str, config: Mapping[str, object], dtype: Dtype | None = None) -> ModelSpec:
    """The model a transformers config describes; `dtype` overrides the one the config names."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise UserError(
            f"model {name}: model_type {model_type!r} is not supported; supported are {supported}"
        )
    if config.get("quantization_config") is not None:
        raise UserError(
            f"model {name}: the checkpoint is quantised; use the unquantised one and --weight-bits 4"
        )
    family = FAMILIES[model_type](Config(model=name, values=config))
    return ModelSpec(
        name=name,
        config=dict(config),
        layer_prefix=family.layer_prefix,
        layers=family.layers,
        ends=family.ends,
        tied=family.tied,
        hidden_size=family.hidden_size,
        vocab_size=family.vocab_size,
        num_heads=family.heads.num,
        num_kv_heads=family.heads.num_kv,
        head_dim=family.heads.dim,
        head_numel=family.ends[0].numel,
        max_positions=family.max_positions,
        dtype=dtype or _config_dtype(name, config),
        cpu_attention=family.cpu_attention,
    )


def _config_dtype(name: str, config: Mapping[str, object]) -> Dtype:
    """The config's "dtype", or older "torch_dtype"; float32, as in transformers, where it has neither."""
    value = config.get("dtype") or config.get("torch_dtype") or "float32"
    for dtype in _DTYPES:
        if value in (dtype, f"torch.{dtype}"):
            return dtype
    raise UserError(f"model {name}: dtype {value!r} is not supported; supported are {', '.join(_DTYPES)}")


def _known_configs() -> dict[str, dict[str, object]]:
    entries = load_yaml(_KNOWN)
    return {name: config for name, config in entries.items() if isinstance(config, dict)}


def _read_json(path: Path) -> dict[str, object]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: holds no config.json; name a transformers checkpoint directory"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds {type(config).__name__}, expected a transformers config")
    return config


def _unknown_model(name: str, known: tuple[str, ...]) -> UserError:
    near = difflib.get_close_matches(name.lower().rpartition("/")[2], known, n=4, cutoff=0.5)
    hint = f"near matches: {', '.join(near)}" if near else f"known names: {', '.join(known)}"
    return UserError(
        f"model {name!r} is neither a known name nor a path ({hint}); "
        "name a known model, a config.json, or a checkpoint directory"
    )

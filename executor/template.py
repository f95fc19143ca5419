"""The model's own modules, built without weights: layers to be filled from slots, and the ends to be run from outside.

No decoder layer is written here. The layer list is replaced by recorders, so one forward of the model yields every
layer's arguments (the prelude), and another one from the last recorder on gives the logits (the tail).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights

from executor.experts import register_experts
from hwprofiles.errors import UserError
from planner.model import ModelSpec

Arguments = dict[str, object]


class _Prelude(Exception):
    """Raised by the last recorder: every layer's arguments are known, the tail is not wanted."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One forward's prelude: the hidden states that enter layer 0 and each layer's keyword arguments."""

    hidden: torch.Tensor
    """[rows, tokens, hidden]"""
    arguments: tuple[Arguments, ...]


class _Recorder(nn.Module):
    """Stands in for a layer: notes its arguments and passes its input on."""

    def __init__(self, layer: nn.Module, index: int, owner: LayerTemplates) -> None:
        super().__init__()
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_index", index)

    def __getattr__(self, name: str) -> torch.Tensor | nn.Module:
        found: torch.Tensor | nn.Module = getattr(object.__getattribute__(self, "_layer"), name)
        return found

    def forward(self, hidden: torch.Tensor, *positional: object, **arguments: object) -> object:
        index = object.__getattribute__(self, "_index")
        return object.__getattribute__(self, "_owner").record(index, hidden, positional, arguments)


class _HasLogits(Protocol):
    logits: torch.Tensor


class LayerTemplates:
    """A causal language model whose layers hold no weights of their own; of a stage's part only its layers are run.

    Errors: UserError for a family whose attention does not go through transformers' attention interface when
    `attention` names a registered function.
    """

    def __init__(self, spec: ModelSpec, device: torch.device, attention: str) -> None:
        config = AutoConfig.for_model(str(spec.config["model_type"]), **_config_arguments(spec))
        implementation = attention if spec.cpu_attention else "eager"
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec.dtype))
        model.config._attn_implementation = implementation
        for module in model.modules():
            if isinstance(getattr(module, "config", None), type(model.config)):
                cast(PreTrainedModel, module).config._attn_implementation = implementation
        register_experts(model)
        self.model: PreTrainedModel = model.eval()
        self.spec, self.device = spec, device
        _materialise_buffers(self.model, device)
        layers = cast(nn.ModuleList, self.model.get_submodule(spec.layer_prefix))
        self.layers = tuple(layers)[spec.first_layer : spec.first_layer + spec.num_layers]
        recorders = [_Recorder(layer, index, self) for index, layer in enumerate(layers)]
        self._last_recorder = len(recorders) - 1
        parent, _, name = spec.layer_prefix.rpartition(".")
        setattr(self.model.get_submodule(parent), name, nn.ModuleList(recorders))
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        self._slots = [_parameter_owners(layer) for layer in self.layers]
        self._heard: list[tuple[torch.Tensor, Arguments]] = []
        self._tail_input: torch.Tensor | None = None

    def bind_ends(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give embeddings, final norm and head their weights, by full parameter name; tied names share.

        What other stages hold is stood in for by zeros that take no memory: here its results are not used.
        """
        zero = torch.zeros(1, dtype=getattr(torch, self.spec.dtype), device=self.device)
        absent = {tensor.name: zero.expand(tensor.shape) for tensor in self.spec.elsewhere}
        for name, tensor in {**tensors, **absent}.items():
            owner, _, attribute = name.rpartition(".")
            self.model.get_submodule(owner)._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
        self.model.tie_weights()
        missing = [name for name, parameter in self.model.named_parameters() if parameter.is_meta]
        if missing:
            raise UserError(
                f"{self.spec.name}: no weights for {', '.join(missing[:3])}; is the model description right?"
            )

    def bind_layer(self, j: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Point layer j's parameters at these tensors, by name within the layer."""
        owners = self._slots[j]
        for name, tensor in tensors.items():
            parameters, attribute = owners[name]
            parameters[attribute] = tensor  # type: ignore[assignment]  # a plain view: nothing is trained here

    def run_layer(self, j: int, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """Layer j's output [rows, tokens, hidden]; some families return it in a tuple."""
        result = self.layers[j](hidden, **arguments)
        return cast(torch.Tensor, result[0] if isinstance(result, tuple) else result)

    def prelude(
        self, input_ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Cache
    ) -> Recorded:
        """Embed [rows, tokens] ids and record what each layer is called with.

        Without the embedding, on a later stage of a pipeline, only the arguments mean something.
        """
        extra: Arguments = {"position_ids": positions} if self._takes_positions else {}
        self._heard, self._tail_input = [], None
        try:
            self.model(
                input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra
            )
        except _Prelude:
            heard, self._heard = self._heard, []
            return Recorded(heard[0][0], tuple(arguments for _, arguments in heard))
        raise AssertionError("the model's forward did not reach its last layer")

    def tail(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocab] for the last layer's output [rows, hidden]."""
        self._tail_input = hidden[:, None]
        ids = torch.zeros(hidden.shape[0], 1, dtype=torch.long, device=self.device)
        try:
            output = cast(_HasLogits, self.model(input_ids=ids, use_cache=False))
        finally:
            self._tail_input = None
        return output.logits[:, -1]

    def record(
        self, index: int, hidden: torch.Tensor, positional: tuple[object, ...], arguments: Arguments
    ) -> object:
        """The whole model's layer `index` was called: a prelude notes the arguments, in a tail the last one answers."""
        if self._tail_input is not None:
            return self._answer(self._tail_input if index == self._last_recorder else hidden)
        j = index - self.spec.first_layer
        if j >= 0:
            self._heard.append((hidden, {**_named(self.layers[j], positional), **arguments}))
        if j == len(self.layers) - 1:
            raise _Prelude
        return self._answer(hidden)

    def _answer(self, hidden: torch.Tensor) -> object:
        return (hidden, None) if self.spec.config["model_type"] in TUPLE_FAMILIES else hidden


TUPLE_FAMILIES = frozenset({"bloom", "falcon"})
"""Families whose layers return (hidden states, attention weights)."""


def _config_arguments(spec: ModelSpec) -> dict[str, object]:
    dropped = (
        "model_type",
        "architectures",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "quantization_config",
    )
    return {key: value for key, value in spec.config.items() if key not in dropped}


def _named(layer: nn.Module, positional: tuple[object, ...]) -> Arguments:
    """Positional arguments after the hidden states, by the names the layer's forward gives them."""
    if not positional:
        return {}
    names = list(inspect.signature(layer.forward).parameters)[1:]
    return dict(zip(names, positional, strict=False))


def _parameter_owners(layer: nn.Module) -> dict[str, tuple[dict[str, nn.Parameter | None], str]]:
    """For each parameter name of a layer, the dictionary that holds it and its key there."""
    return {
        name: (layer.get_submodule(name.rpartition(".")[0])._parameters, name.rpartition(".")[2])
        for name, _ in layer.named_parameters()
    }


def _materialise_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Buffers (rotary frequencies and the like) are computed, not loaded: let the model initialise its own."""
    for module in model.modules():
        if not module._buffers:
            continue
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
        model._init_weights(module)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)

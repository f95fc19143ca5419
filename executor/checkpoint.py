"""Checkpoint: a transformers directory of safetensors, checked from its headers and read piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from executor.model_config import check_same_model
from executor.tensor_files import StoredTensor, TensorStream, have_same_bytes, read_header
from executor.tensor_names import Sources, candidates, head_keys
from hwprofiles.errors import UserError
from planner.model import ModelSpec, TensorSpec

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """The parameters of `model`, as a directory holds them.

    Opening reads the headers only, and raises UserError where it is not a checkpoint of this model: other
    config, missing or truncated file, missing or wrong-shaped tensor. Values are read when asked for.
    """

    def __init__(self, directory: Path, model: ModelSpec) -> None:
        self.directory, self.model = directory, model
        check_same_model(directory, model)
        stored = _read_headers(directory)
        self._parts = {
            name: _locate(directory, model, name, tensor, stored) for name, tensor in named_tensors(model)
        }
        if model.tied:
            self._check_tied_head(stored)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a parameter is stored in."""
        return self._parts[name][0].torch_dtype(name)

    def stream(self, name: str) -> TensorStream:
        """The values of a parameter as one run of bytes, in the dtype they are stored in; to be closed."""
        return TensorStream(self._parts[name])

    def _check_tied_head(self, stored: dict[str, StoredTensor]) -> None:
        """A UserError where config.json ties the head to the embedding and their stored values differ."""
        name = self.model.ends[0].name
        embedding = self._parts[name][0]
        for key in head_keys():
            head = stored.get(key)
            if head is None or head == embedding or head.shape != embedding.shape:
                continue
            if not have_same_bytes(head, embedding):
                raise UserError(
                    f"{self.directory}: config.json ties {key} to {name}, yet their values differ; set "
                    "tie_word_embeddings to false in config.json and plan again"
                )


def named_tensors(model: ModelSpec) -> Iterator[tuple[str, TensorSpec]]:
    """Every parameter by its full name: the ends, then the layers."""
    for tensor in model.ends:
        yield tensor.name, tensor
    for j, layer in enumerate(model.layers):
        for tensor in layer.tensors:
            yield f"{model.layer_prefix}.{model.first_layer + j}.{tensor.name}", tensor


def _read_headers(directory: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by its key."""
    if (directory / _SINGLE).is_file():
        return read_header(directory / _SINGLE)
    if not (directory / _INDEX).is_file():
        raise _no_checkpoint(directory)
    files = _indexed_files(directory / _INDEX)
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise UserError(
            f"{directory}: {len(missing)} of the {len(files)} files that {_INDEX} names are missing, "
            f"first {missing[0]}; download them"
        )
    return {key: tensor for file in files for key, tensor in read_header(directory / file).items()}


def _indexed_files(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except OSError as error:
        raise UserError(f"{index}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not a safetensors index; download or save the checkpoint again") from None


def _no_checkpoint(directory: Path) -> UserError:
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if others:
        return UserError(
            f"{directory}: holds {others[0]} but no safetensors; convert it with "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    return UserError(f"{directory}: holds neither {_SINGLE} nor {_INDEX}; name a checkpoint directory")


def _locate(
    directory: Path, model: ModelSpec, name: str, tensor: TensorSpec, stored: dict[str, StoredTensor]
) -> tuple[StoredTensor, ...]:
    """The stored tensors that make up a parameter, checked for shape and dtype."""
    found = next((sources for sources in candidates(model, name, tensor) if sources[0].key in stored), None)
    if found is None:
        raise UserError(f"{directory}: tensor {name} is missing; is it a checkpoint of {model.name}?")
    _check_shapes(directory, found, stored)
    parts = tuple(stored[source.key] for source in found)
    for source, part in zip(found, parts, strict=True):
        if part.torch_dtype(source.key) != parts[0].torch_dtype(found[0].key):
            raise UserError(
                f"{part.path}: {source.key} is {part.dtype} but {found[0].key} {parts[0].dtype}; "
                "save the checkpoint in one dtype"
            )
    return parts


def _check_shapes(directory: Path, sources: Sources, stored: dict[str, StoredTensor]) -> None:
    for source in sources:
        if source.key not in stored:
            raise UserError(f"{directory}: tensor {source.key} is missing; download the checkpoint again")
        part = stored[source.key]
        if part.shape != source.shape:
            raise UserError(
                f"{part.path}: tensor {source.key} has shape {list(part.shape)}, the plan's model needs "
                f"{list(source.shape)}; plan with the checkpoint's own config"
            )

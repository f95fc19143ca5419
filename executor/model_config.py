"""Whether a checkpoint's config describes the model a plan was made for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from hwprofiles.errors import UserError
from planner.model import ModelSpec, load_model

_IRRELEVANT = frozenset(
    ("use_cache", "output_router_logits", "initializer_range", "init_std", "layerdrop", "is_decoder")
)
_IRRELEVANT_PREFIXES = ("router_", "summary_", "pretraining_")
_IRRELEVANT_SUFFIXES = ("dropout", "pdrop", "_token_id")
"""Of keys that change neither a shape nor a value of the forward pass."""


def check_same_model(directory: Path, model: ModelSpec) -> None:
    """A UserError naming the first key in which a checkpoint's config.json differs from the plan's config.

    Keys that one of them lacks have the default of transformers' config class.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: not a directory; name a transformers checkpoint directory")
    theirs = load_model(str(directory)).config
    if theirs["model_type"] != model.config["model_type"]:
        raise _differs(directory, model, "model_type", theirs, model.config)
    ours, theirs = _complete(model.config), _complete(theirs)
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise _differs(directory, model, key, theirs, ours)


def _complete(config: Mapping[str, object]) -> dict[str, object]:
    """The keys that matter, every default filled in."""
    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        complete = AutoConfig.for_model(str(config["model_type"]), **values).to_dict()
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config of {config['model_type']} is refused by transformers: {reason}") from None
    common = PreTrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
    return {key: value for key, value in complete.items() if key not in common and _is_relevant(key)}


def _is_relevant(key: str) -> bool:
    return not (
        key in _IRRELEVANT or key.startswith(_IRRELEVANT_PREFIXES) or key.endswith(_IRRELEVANT_SUFFIXES)
    )


def _differs(
    directory: Path, model: ModelSpec, key: str, theirs: Mapping[str, object], ours: Mapping[str, object]
) -> UserError:
    return UserError(
        f"{directory}: config.json has {key} {theirs.get(key)!r}, the plan for {model.name} has "
        f"{ours.get(key)!r}; plan again with --model {directory}"
    )

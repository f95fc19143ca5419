"""A checkpoint directory from what --model-path was given: a directory, or a hub id where there is a network."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from hwprofiles.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def resolve_model(name_or_dir: str) -> Path:
    """The directory itself, or the hub's checkpoint of that id in the local cache, downloaded if need be."""
    directory = Path(name_or_dir)
    if directory.is_dir():
        return directory
    if not _HUB_ID.fullmatch(name_or_dir) or directory.is_absolute():
        raise UserError(
            f"--model-path {name_or_dir}: no such directory, and not a hub id such as facebook/opt-1.3b"
        )
    try:
        return Path(snapshot_download(name_or_dir, allow_patterns=list(_FILES)))
    except RepositoryNotFoundError:
        raise UserError(
            f"--model-path {name_or_dir}: the hub has no such model (or it is private: log in)"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"--model-path {name_or_dir}: no such directory, and the hub cannot be reached ({type(error).__name__}); "
            "give a checkpoint directory"
        ) from None

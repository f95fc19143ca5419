"""Results as JSON files, read back as strictly as they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from hwprofiles.errors import UserError
from hwprofiles.files import write_atomically
from hwprofiles.yaml_io import from_plain, to_plain

T = TypeVar("T")


def write_json_result(result: object, path: Path) -> None:
    """Replace the file, whole or not at all."""
    write_atomically(path, json.dumps(to_plain(result), indent=1) + "\n")


def load_json_result(path: Path, cls: type[T]) -> T:
    """The result a file holds."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a benchmark's result ({error})") from None
    return from_plain(data, cls, str(path))

"""Writing files so that an interrupted write leaves what was there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hwprofiles.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a file with this text; an interrupted write leaves what was there."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    finally:
        Path(temporary).unlink(missing_ok=True)

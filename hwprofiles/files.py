"""Writing files so that an interrupted write leaves what was there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hwprofiles.errors import UserError


def check_writable(path: Path) -> None:
    """A UserError now, where write_atomically would raise one after hours of work."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is not a directory; create it or choose another file")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name a file in it")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file with this content; an interrupted write leaves what was there."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    finally:
        Path(temporary).unlink(missing_ok=True)

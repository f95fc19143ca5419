"""The kernel's copies of files."""

from __future__ import annotations

import os
from pathlib import Path


def forget_files(directory: Path) -> None:
    """Drop a directory's files from the page cache, once they are written, so that the next read is from the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

"""A peer's packages, from the registry or from a folder of wheels, into a directory of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers.base import Peer
from hwprofiles.errors import UserError

_ERROR_TAIL = 500


def install(peer: Peer, directory: Path, wheels: Path | None) -> None:
    """pip's --target; torch and transformers stay those that our runs use."""
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    for packages, flags in ((peer.packages, ["--no-deps"]), (peer.dependencies, [])):
        if packages:
            _pip_install(peer.name, packages, [*source, *flags, "--target", str(directory)])


def _pip_install(peer: str, packages: tuple[str, ...], flags: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *flags, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"{peer}: pip could not install {', '.join(packages)}: "
            f"{' '.join(done.stderr.split())[-_ERROR_TAIL:]}; without a network give --wheels DIR, see "
            "benchmarks/README.md"
        )

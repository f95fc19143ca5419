"""A peer's packages, from the registry or from a folder of wheels, into a directory of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers.base import Peer
from hwprofiles.errors import UserError

_ERROR_TAIL = 500


def install(peer: Peer, directory: Path, wheels: Path | None) -> None:
    """pip's --target, without dependencies, so that torch and transformers stay those that our runs use."""
    if not peer.packages:
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--find-links", str(wheels)] if wheels else []
    done = subprocess.run(
        [*command, "--target", str(directory), *peer.packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(
            f"{peer.name}: pip could not install {', '.join(peer.packages)}: "
            f"{' '.join(done.stderr.split())[-_ERROR_TAIL:]}; without a network give --wheels DIR, see "
            "benchmarks/README.md"
        )

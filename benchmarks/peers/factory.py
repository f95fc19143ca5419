"""All peers by name."""

from __future__ import annotations

from types import MappingProxyType

from benchmarks.peers.accelerate import ACCELERATE
from benchmarks.peers.base import Peer
from benchmarks.peers.flexgen import FLEXGEN
from benchmarks.peers.transformers import TRANSFORMERS
from benchmarks.peers.zero_inference import ZERO_INFERENCE
from hwprofiles.errors import UserError

PEERS = MappingProxyType({peer.name: peer for peer in (FLEXGEN, ZERO_INFERENCE, ACCELERATE, TRANSFORMERS)})


def peer_named(name: str) -> Peer:
    """The peer; a UserError names those that there are."""
    if name not in PEERS:
        raise UserError(f"unknown peer {name!r}; peers are {', '.join(PEERS)}")
    return PEERS[name]

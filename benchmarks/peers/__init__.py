"""Other systems, run beside ours: each is a Peer, installed when a benchmark starts and never part of this tree."""

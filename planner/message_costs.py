"""Message costs: what sending and receiving hidden states asks of the net and of the link, for one stage."""

from __future__ import annotations

import math

from planner.layout import DTYPE_BYTES
from planner.messages import ID_BYTES, Messages
from planner.tasks import TaskKind
from planner.work import Move, Step


def message_moves(messages: Messages, rows: float, step: Step, num_batches: float) -> list[Move[float]]:
    """All messages of one pass of so many gpu batches of `rows` sequences, and their copies over the link."""
    model = messages.model
    if model.is_whole:
        return []
    hidden = rows * step.num_new * model.hidden_size * DTYPE_BYTES[model.dtype]
    ids, header = rows * ID_BYTES, float(messages.ids_bytes(math.ceil(rows)))
    moves = []
    for kind, lane, link, is_end in (
        (TaskKind.RECEIVE, "net_in", "h2d", model.has_embedding),
        (TaskKind.SEND, "net_out", "d2h", model.has_head),
    ):
        size = ids if is_end else header + hidden
        moves.append(Move(kind=kind, resource=lane, count=num_batches, num_bytes=num_batches * size))
        if messages.over_link and not is_end:
            moves.append(Move(kind=kind, resource=link, count=num_batches, num_bytes=num_batches * hidden))
    return moves

"""Messages: what passes from one pipeline stage to the next, how large it is, and the slots it waits in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.layout import DTYPE_BYTES, TENSOR_ALIGN_BYTES, align
from planner.model import ModelSpec
from planner.policy import Policy, Tier
from planner.workload import Workload

ID_BYTES = 8
NCCL_BYTES: Mapping[Tier, int] = {"gpu": 1_100_000_000, "cpu": 400_000_000}
"""What NCCL takes to pass messages: ranks on two H200s held 0.75 and 1.12 GB of their GPUs more than without, and 0.28
and 0.44 GB of the host's memory."""
MIN_SLOTS = 2
"""One on its way, one being filled or read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """The messages of one stage: a gpu batch's hidden states, after the ids that were sampled for it last."""

    model: ModelSpec
    workload: Workload
    policy: Policy
    compute_tier: Tier

    @property
    def tier(self) -> Tier:
        """Where messages wait for the next stage, and where they arrive from the one before."""
        return self.compute_tier if self.policy.comm_device == "cuda" else "cpu"

    @property
    def over_link(self) -> bool:
        """Whether hidden states must be copied between there and the compute tier."""
        return self.tier != self.compute_tier

    @property
    def incoming_slots(self) -> int:
        """Messages that may have arrived: a wave of them, so that the stage before can go on."""
        if self.model.has_embedding:
            return 0
        return max(MIN_SLOTS, -(-self.policy.num_gpu_batches // self.policy.num_waves))

    @property
    def outgoing_slots(self) -> int:
        """Messages on their way."""
        return 0 if self.model.has_head else MIN_SLOTS

    @property
    def library_bytes(self) -> Mapping[Tier, int]:
        """What passes them from GPU to GPU takes for itself."""
        return NCCL_BYTES if self.nbytes and self.policy.comm_device == "cuda" else {}

    @property
    def slot_bytes(self) -> int:
        """Room for any message."""
        rows, tokens = self.policy.gpu_batch_size, self.workload.prompt_len
        return align(self.ids_bytes(rows) + self.hidden_bytes(rows, tokens))

    @property
    def nbytes(self) -> int:
        """All slots."""
        return (self.incoming_slots + self.outgoing_slots) * self.slot_bytes

    def ids_bytes(self, rows: int) -> int:
        """Room for the ids, after which the hidden states begin."""
        return align(rows * ID_BYTES, TENSOR_ALIGN_BYTES)

    def hidden_bytes(self, rows: int, num_tokens: int) -> int:
        """Hidden states [rows, num_tokens, hidden]."""
        return rows * num_tokens * self.model.hidden_size * DTYPE_BYTES[self.model.dtype]

"""Attention over rows that live on different tiers: the function and the cache given to transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from executor.arena import Arena, write_by_kernel
from executor.attend import Math, attend_prompt, attend_rows, rows_errand
from executor.cache import KvView
from hwprofiles.errors import UserError
from hwprofiles.probes.cpu_attention import NativeCall

ATTENTION_NAME = "tierplan"
"""As registered with transformers. No mask function bears the name, so models build no masks for it."""


@dataclass(slots=True)
class Part:
    """Consecutive rows of the gpu batch whose K and V are in one place."""

    start: int
    view: KvView
    on_cpu: bool
    """Attended by the CPU although the layer computes on another device."""
    on_device: KvView | None = None
    """The same memory as the compute device addresses it, for graphs."""


@dataclass(slots=True)
class Step:
    """What the layer that runs now works on: a chunk of rows of one gpu batch."""

    first_row: int
    num_rows: int
    past: int
    """Tokens cached before this step."""
    parts: list[Part]
    pads: torch.Tensor | None
    """[chunk rows] left padding, on the compute device; None where nothing is padded."""
    host_pads: torch.Tensor | None
    """The same on the host."""
    length: torch.Tensor | None = None
    """[1] int64 on the device: the same as `past`, for kernels that are part of a graph."""
    pause: Callable[[], None] = lambda: None
    """Called when the CPU's queries have been sent, and again when the device's own rows have been queued."""
    errands: list[Errand] = field(default_factory=list)
    """What the CPU is to attend to."""

    def overlapping(self) -> Iterator[tuple[Part, slice, int]]:
        """The parts that meet the chunk: (part, the chunk's rows, first of them within the part)."""
        for part in self.parts:
            start = max(part.start, self.first_row)
            stop = min(part.start + part.view.rows, self.first_row + self.num_rows)
            if start < stop:
                yield part, slice(start - self.first_row, stop - self.first_row), start - part.start


class RowAttention:
    """The engine's attention: transformers calls it inside each layer, with the step the engine has set.

    One engine at a time may be registered in a process: layers find the function by name.
    """

    def __init__(self, exchange: Exchange, num_threads: int | None) -> None:
        """`num_threads` of the CPU's attention; None: as many as torch has.

        It must hold nothing of an engine but the exchange: it stays registered when the engine is gone.
        """
        self.exchange, self._num_threads = exchange, num_threads
        self.step: Step | None = None
        AttentionInterface.register(ATTENTION_NAME, self)

    def current(self) -> Step:
        """The step in progress."""
        assert self.step is not None, "attention outside a step"
        return self.step

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **unused: object,
    ) -> tuple[torch.Tensor, None]:
        """Attend [rows, heads, tokens, head_dim] queries; returns [rows, tokens, heads, head_dim]."""
        for name in ("position_bias", "s_aux"):
            if unused.get(name) is not None:
                raise UserError(f"this model's attention uses {name}, which tierplan does not support yet")
        how = Math(
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            window=sliding_window,
            softcap=softcap,
        )
        step = self.current()
        if step.past == 0:
            result = attend_prompt(query, key, value, step.host_pads, how)
        else:
            result = self._attend_step(query, step, how)
        return result.transpose(1, 2).contiguous(), None

    def _attend_step(self, query: torch.Tensor, step: Step, how: Math) -> torch.Tensor:
        """Decode: the CPU's queries leave first, then the device's rows are queued; the rest waits for the CPU.

        Where the CPU attends, the step pauses after each of the two.
        """
        result = torch.empty_like(query.transpose(1, 2)).transpose(
            1, 2
        )  # laid out as the layer goes on with it
        total = step.past + query.shape[2]
        parts = list(step.overlapping())
        far = [place for place in parts if place[0].on_cpu]
        near = [place for place in parts if not place[0].on_cpu]
        sent = self.exchange.send([query[rows] for _, rows, _ in far])
        for (part, rows, row), message in zip(far, sent, strict=True):
            pads = None if step.host_pads is None else step.host_pads[rows]
            there = message.query, part.view, row, total, pads, how, message.result
            token_bytes = 2 * part.view.vector_bytes * message.query.shape[0]
            threads = self._num_threads or torch.get_num_threads()
            num_tokens = min(total, part.view.kept)
            step.errands.append(Errand(rows_errand(*there, threads), num_tokens, token_bytes))
        if sent:
            step.pause()
        for part, rows, row in near:
            pads = None if step.pads is None else step.pads[rows]
            attend_rows(query[rows], part.view, row, total, pads, how, result[rows], step.length)
        if sent and near:
            step.pause()
        for (_, rows, _), message in zip(far, sent, strict=True):
            message.bring_back(result[rows])
        return result


@dataclass(frozen=True, slots=True)
class Message:
    """A query for the CPU, [rows, heads, 1, head_dim], on the host with room for its result."""

    query: torch.Tensor
    result: torch.Tensor
    result_on_device: torch.Tensor | None
    """The same memory as a device addresses it; None where the CPU computes everything."""

    def bring_back(self, target: torch.Tensor) -> None:
        """Put the result where the layer goes on."""
        if self.result_on_device is None:
            target.copy_(self.result)
        else:
            torch.mul(self.result_on_device, 1, out=target)


@dataclass(frozen=True, slots=True)
class Errand:
    """Attention of some rows that is the CPU's to compute, once their queries have arrived."""

    run: Callable[[], None]
    """Leaves the result where it goes back from."""
    num_tokens: int
    token_bytes: int
    """Of K and V that are read."""

    @property
    def num_bytes(self) -> int:
        """Of all tokens."""
        return self.num_tokens * self.token_bytes

    @property
    def is_compiled(self) -> bool:
        """Whether it can be done for other tokens."""
        return isinstance(self.run, NativeCall)

    def at(self, total: int) -> Errand:
        """The same when so many tokens are attended to, of a cache that keeps them all."""
        assert isinstance(self.run, NativeCall), "only what is compiled"
        self.run.job.stop = total
        return replace(self, num_tokens=total)


class Exchange:
    """Registered host memory through which queries leave for the CPU and results come back.

    `nbytes` holds the queries and results of all rows that the CPU attends in two gpu batches, which take turns
    (Sizes.attention_staging): one that it attends for, and one that brings back its results or sends its queries.
    Kernels carry them, not copies: a copy would wait for the bulk transfers of other streams. They lie here in float32,
    in which the CPU attends.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._arena = Arena(nbytes, torch.device("cpu"), register=device.type == "cuda")
        self._on_device = self._arena.on_device() if device.type == "cuda" and nbytes else None
        self._starts = 0, nbytes // 2
        self.half = 0
        """The one that is free for the next gpu batch."""

    def send(self, queries: list[torch.Tensor]) -> list[Message]:
        """Start bringing queries to the host; they are there once what is queued on the device's stream is done."""
        if self._on_device is None:
            flat = [query.float().contiguous() for query in queries]
            return [Message(query, torch.empty_like(query), None) for query in flat]
        sent, used = [], self._starts[self.half]
        for query in queries:
            nbytes = query.numel() * torch.float32.itemsize
            there, query_here = self._piece(used, nbytes, query.shape)
            back, result_here = self._piece(used + nbytes, nbytes, query.shape)
            write_by_kernel(query, there)
            sent.append(Message(query_here, result_here, back))
            used += 2 * nbytes
        return sent

    def _piece(self, start: int, nbytes: int, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for one tensor, as the device and as the host address it."""
        assert self._on_device is not None
        both = self._on_device, self._arena.tensor
        device, host = (t[start : start + nbytes].view(torch.float32).view(shape) for t in both)
        return device, host

    def close(self) -> None:
        """Give the memory back."""
        self._on_device = None
        self._arena.close()


class TierCache(Cache):
    """A transformers cache that writes into the parts of the current step.

    With `gather`, for families whose attention is their own, `update` returns all of K and V; else the registered
    attention reads the parts itself.
    """

    def __init__(self, attention: RowAttention, *, gather: bool) -> None:
        super().__init__(layers=[DynamicLayer()])
        self.attention, self.gather = attention, gather

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [rows, heads, tokens, head_dim] at the step's position."""
        step = self.attention.current()
        for part, rows, row in step.overlapping():
            if step.length is None:
                part.view.write(step.past, row, key_states[rows], value_states[rows])
            else:
                near = part.on_device or part.view
                near.write(step.length, row, key_states[rows], value_states[rows])
        if not self.gather or step.past == 0:
            return key_states, value_states
        total = step.past + key_states.shape[2]
        read = [
            part.view.read(0, total, row, rows.stop - rows.start) for part, rows, row in step.overlapping()
        ]
        return torch.cat([key for key, _ in read]), torch.cat([value for _, value in read])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens cached before this step."""
        return self.attention.step.past if self.attention.step else 0

    def get_mask_sizes(self, query_length: int | torch.Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """(key length, key offset) of this step; older transformers pass the positions instead of their number."""
        num_new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + num_new, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the first new token."""
        return self.get_seq_length()

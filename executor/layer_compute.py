"""The compute tasks: prelude, layers and tail of one gpu batch, by way of the model's own modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from executor.activations import ActivationHomes
from executor.attention import ATTENTION_NAME, Exchange, Part, RowAttention, Step, TierCache
from executor.block import BatchState
from executor.cache import CacheHomes, KvView
from executor.end_graphs import EndWork
from executor.graphs import refresh, tensors_of
from executor.kept import KeptBatches
from executor.messages import MessageSlots
from executor.template import LayerTemplates
from executor.template import Recorded as PreludeRecord
from executor.visits import (
    Called,
    Captured,
    CaptureError,
    Recorded,
    Replayed,
    Visit,
    pause,
    place_of,
)
from executor.weight_slots import WeightSlots
from executor.weights import WeightHomes
from planner.graphs import CAPTURE_PASS
from planner.layout import is_resident
from planner.placement import CacheGroup, group_tier
from planner.schedule import PRELUDE, Task
from planner.sizes import Sizes


class LayerCompute:
    """Runs one compute task: the embedding, a layer over all rows of a gpu batch, or head and sampling."""

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device,
        weights: WeightSlots,
        caches: CacheHomes,
        activations: ActivationHomes,
        messages: MessageSlots,
        *,
        has_graphs: bool = False,
    ) -> None:
        self.sizes, self.device = sizes, device
        self.weights, self.caches, self.activations, self.messages = weights, caches, activations, messages
        self.exchange = Exchange(sizes.attention_staging(), device)
        self.attention_threads = sizes.policy.attention_threads if device.type == "cuda" else None
        """The plan's beside a GPU; a CPU that computes everything has all of them."""
        self.attention = RowAttention(self.exchange, self.attention_threads)
        self.templates = LayerTemplates(sizes.model, device, ATTENTION_NAME)
        self.cache = TierCache(self.attention, gather=not sizes.model.cpu_attention)
        self._bound: tuple[int, int, int] | None = None
        self.kept = KeptBatches(sizes, device, has_graphs=has_graphs)
        self._open: dict[int, Visit] = {}
        """By gpu batch."""
        self._has_rehearsed = False
        self.observe_logits: Callable[[Task, torch.Tensor], None] | None = None
        """Told the logits [rows, vocab] of each token of each gpu batch."""

    def bind_ends(self, homes: WeightHomes) -> None:
        """Once the weights are loaded."""
        self.templates.bind_ends({tensor.name: homes.end(tensor.name) for tensor in self.sizes.model.ends})
        self.weights.prepare()

    def start_block(self, states: Sequence[BatchState]) -> None:
        """Slots hold other layers now."""
        self._bound = None
        self._open.clear()
        self.kept.start_block(states)

    def close(self) -> None:
        """Give the memory back; the attention outlives the engine, for it is registered with transformers."""
        self.attention.step = None
        self._open.clear()
        self.kept.forget()
        self.exchange.close()

    def run(self, task: Task, state: BatchState) -> None:
        """Do the task."""
        if task.j == PRELUDE:
            self._prelude(task, state)
        elif task.j == len(self.sizes.model.layers):
            self._tail(task, state)
        elif task.part == 0:
            visit = self._begin(task, state)
            if task.num_parts > 1:
                self._open[task.k] = visit
        else:
            visit = self._open[task.k]
            visit.go_on()
            if task.part == task.num_parts - 1:
                del self._open[task.k]

    def attend(self, task: Task) -> int:
        """The CPU's attention for a gpu batch whose layer is paused; the bytes of K and V that were read."""
        if self.attention_threads and torch.get_num_threads() != self.attention_threads:
            torch.set_num_threads(self.attention_threads)  # for where there is no compiled attention
        errands = self._open[task.k].errands
        for errand in errands:
            errand.run()
        return sum(errand.num_bytes for errand in errands)

    def _prelude(self, task: Task, state: BatchState) -> None:
        """Embed this token's ids, and record what each layer is called with."""
        if task.i == 1:
            self.kept.enter(task.k, state)
        if not task.i or not self.kept.replays(task.k):
            self._call_prelude(task, state)
            return
        before, known = state.arguments[0], self.kept.arguments(task.k)
        self.kept.set_length(task, state)

        def call() -> None:
            self._call_prelude(task, state)
            self.kept.refresh(task, state, before)

        if not self.kept.replays_ends(task):
            call()
            return
        if known is not None:
            state.arguments = [known]
        work = EndWork(
            call=call,
            on_device=lambda: self._prelude_on_device(task, state),
            left=lambda: [self._working(task, state), *tensors_of(state.arguments[0])],
        )
        self.kept.ends.run(("prelude", task.k), work)

    def _call_prelude(self, task: Task, state: BatchState) -> None:
        """Chunk by chunk. A later stage of a pipeline is sent the hidden states: it needs the arguments only."""
        past, num_new = state.past(task.i), state.num_new(task.i)
        ids = self._ids(task, state).to(self.device).view(state.num_rows, num_new)
        tokens = torch.arange(past, past + num_new, device=self.device)
        state.arguments = []
        for first, count in state.chunks_of(task.i):
            recorded = self._recorded(ids[first : first + count], first, past, tokens, state)
            if self.sizes.model.has_embedding:
                self._working(task, state)[first : first + count] = recorded.hidden
            state.arguments.append(recorded.arguments)

    def _prelude_on_device(self, task: Task, state: BatchState) -> None:
        """That of a pass of decode: whatever the token and its position, they are where they were."""
        assert state.last_ids is not None, "a token has been sampled"
        assert state.length is not None, "the cache's length is on the device"
        recorded = self._recorded(state.last_ids[:, None], 0, state.past(task.i), state.length, state)
        self._working(task, state).copy_(recorded.hidden)
        if not refresh(state.arguments[0], recorded.arguments):
            raise RuntimeError("what layers are called with is of another form")

    def _recorded(
        self, ids: torch.Tensor, first: int, past: int, tokens: torch.Tensor, state: BatchState
    ) -> PreludeRecord:
        """The prelude of rows from `first` on, of ids [rows, tokens] at places [tokens] of the padded sequence."""
        count = len(ids)
        pads = None if state.pads is None else state.pads[first : first + count]
        self.attention.step = Step(first, count, past, [], pads, None)
        positions = tokens[None].expand(count, -1)
        mask = None
        if pads is not None:
            mask = (torch.arange(past + ids.shape[1], device=self.device) >= pads[:, None]).long()
            positions = (positions - pads[:, None]).clamp(min=0)
        most = self.sizes.model.max_positions
        if most is not None:  # only rows that have ended, beside others, get beyond
            positions = positions.clamp(max=most - 1)
        return self.templates.prelude(ids, positions, mask, self.cache)

    def _ids(self, task: Task, state: BatchState) -> torch.Tensor:
        """[rows x tokens] to embed: the prompt, or what was sampled last, here or on the last stage."""
        if task.i == 0:
            return state.batch.input_ids
        if not self.sizes.model.has_embedding:
            return torch.zeros(state.num_rows, dtype=torch.long, device=self.device)
        ids = state.last_ids if self.sizes.model.has_head else state.sampled(task.i - 1)
        assert ids is not None
        return ids

    def _begin(self, task: Task, state: BatchState) -> Visit:
        """The first part of one layer over the gpu batch's rows; at the end its output has replaced its input, or
        gone to the tail or the next stage.

        Where the CPU attends some of the rows it is left meanwhile, and other gpu batches are begun.
        """
        opened = list(self._open.values())
        before, half = place_of(opened)
        self.exchange.half = half
        key = (
            task.j,
            task.k,
            task.slots.weight,
            task.slots.cache if self.kept.num_slots(task.k) > 1 else -1,
        )
        is_replayed = self.kept.is_replayed(task)
        is_known = is_replayed and (task.i >= CAPTURE_PASS or not (opened or task.num_parts > 1))
        if is_known and (known := self.kept.visits.find(key, opened)):
            if self.sizes.policy.weight_bits == 4 and task.num_layers == 1:
                self._bind(task)
            visit: Visit = Replayed(task.k, known, state.past(task.i) + 1)
            visit.go_on()
            return visit
        if task.num_layers == 1:
            self._bind(task)
        if is_replayed and task.i >= CAPTURE_PASS and self.kept.visits.may_capture(opened):
            captured = self._captured(task, state, Recorded(before, half))
            if captured:
                self.kept.visits.keep(key, captured.recorded)
                return captured
        return self._called(Called(task.k, half, lambda: self._call(task, state)))

    def _called(self, visit: Called) -> Called:
        """Run the first part of a call, and note what the CPU is to do."""
        visit.go_on()
        visit.errands = self.attention.current().errands
        return visit

    def _captured(self, task: Task, state: BatchState, recorded: Recorded) -> Captured | None:
        """The same of a call that is captured; None, and never again, where that cannot be."""
        if task.num_parts > 1 and not self._has_rehearsed:
            self._has_rehearsed = True  # what fails in a later part could not be called instead
            if not self.kept.graphs.can_capture(lambda: self._call(task, state, lambda: None)):
                return None
        visit = Captured(task.k, recorded, self.kept.graphs, lambda: self._call(task, state))
        try:
            self._called(visit)
        except CaptureError:
            return None
        recorded.errands = visit.errands
        if not all(errand.is_compiled for errand in visit.errands):
            self.kept.graphs.refuse("the CPU's attention to this model is not compiled")
        return visit

    def _bind(self, task: Task) -> None:
        """Point the layer's module at its weights, once a pass."""
        if self._bound != (bound := (task.i, task.j, task.slots.weight)):
            self.templates.bind_layer(task.j, self.weights.tensors(task.j, task.slots))
            self._bound = bound

    def _call(self, task: Task, state: BatchState, leave: Callable[[], None] = pause) -> None:
        """The layer's module, or those of several layers one after the other."""
        if task.num_layers == 1:
            self._call_layer(task, state, leave)
            return
        for j in range(task.j, task.j + task.num_layers):
            layer = task._replace(j=j, num_layers=1)
            self._bind(layer)
            self._call_layer(layer, state, leave)

    def _call_layer(self, task: Task, state: BatchState, leave: Callable[[], None]) -> None:
        """Over all rows; `leave` between its parts."""
        past, parts = state.past(task.i), self.parts(task, state)
        is_tail_next = task.j == len(self.sizes.model.layers) - 1 and self.sizes.model.has_head
        source, target = self._input(task, state), self._output(task, state)
        if is_tail_next:
            state.last_hidden = self._last_hidden(source, state)
        for (first, count), arguments in zip(state.chunks_of(task.i), state.arguments, strict=True):
            rows = slice(first, first + count)
            pads = None if state.pads is None else state.pads[rows]
            host_pads = None if state.host_pads is None else state.host_pads[rows]
            length = state.length if task.i and self.kept.is_replayed(task) else None
            self.attention.step = Step(first, count, past, parts, pads, host_pads, length, leave)
            output = self.templates.run_layer(task.j, source[rows], arguments[task.j])
            if is_tail_next and state.last_hidden is not None:
                state.last_hidden[rows] = output[:, -1]
            else:
                target[rows] = output

    @staticmethod
    def _last_hidden(source: torch.Tensor, state: BatchState) -> torch.Tensor:
        """[rows, hidden] for the last position, the same for every token."""
        return torch.empty_like(source[:, -1]) if state.last_hidden is None else state.last_hidden

    def _working(self, task: Task, state: BatchState) -> torch.Tensor:
        """[rows, tokens, hidden]: what layers read and write."""
        if task.i and state.decode_hidden is not None:
            return state.decode_hidden
        slot, num_new = task.slots.activation, state.num_new(task.i)
        found = self.activations.working(task.k, slot, state.activation_rows, num_new)
        if task.i:
            state.decode_hidden = found
        return found

    def _input(self, task: Task, state: BatchState) -> torch.Tensor:
        """A message that the compute device can read is read where it arrived."""
        if task.slots.incoming < 0 or self.sizes.messages.over_link:
            return self._working(task, state)
        return self.messages.incoming(task.slots.incoming, state.num_rows, state.num_new(task.i)).hidden

    def _output(self, task: Task, state: BatchState) -> torch.Tensor:
        """A message that the compute device can write is written where it is sent from."""
        if task.slots.outgoing < 0 or self.sizes.messages.over_link:
            return self._working(task, state)
        return self.messages.outgoing(task.slots.outgoing, state.num_rows, state.num_new(task.i)).hidden

    def _tail(self, task: Task, state: BatchState) -> None:
        """Logits of the last position, the next token of each row, and its copy for the host."""
        if self.kept.replays_ends(task) and state.sampler.is_greedy and self.observe_logits is None:
            self.kept.ends.repeat(("tail", task.k), lambda: self._sample(task, state))
        else:
            self._sample(task, state)
        state.send_sampled(task.i)

    def _sample(self, task: Task, state: BatchState) -> None:
        assert state.last_hidden is not None, "the last layer has run"
        logits = self.templates.tail(state.last_hidden)
        if self.observe_logits is not None:
            self.observe_logits(task, logits)
        state.keep_sampled(state.sampler.sample(logits.float()))

    def parts(self, task: Task, state: BatchState) -> list[Part]:
        """Where this gpu batch's K and V are while layer j works on them."""
        if task.i == 0:
            return self._parts(task, state)
        key = task.j, task.slots.cache
        if key not in state.decode_parts:
            state.decode_parts[key] = self._parts(task, state)
        return state.decode_parts[key]

    def _parts(self, task: Task, state: BatchState) -> list[Part]:
        prefill = task.i == 0
        num_tokens = state.batch.prompt_len if prefill else self.sizes.workload.max_len
        in_slot: dict[CacheGroup, KvView] = {}
        if task.slots.cache >= 0:
            slot, rows = task.slots.cache, state.cache_rows
            in_slot = self.caches.in_slot(task.j, slot, rows, num_tokens, prefill=prefill)
        parts, first = [], 0
        for group, count in state.cache_rows.counts():
            if not count:
                continue
            if is_resident(group, self.sizes.compute_tier):
                view, on_cpu = self.caches.home(task.j, task.k, group, count), False
            elif group in in_slot:
                view, on_cpu = in_slot[group], False
            elif group_tier(group) == "disk":
                view, on_cpu = self.staged(task, state)[group], True
            else:
                view, on_cpu = self.caches.home(task.j, task.k, group, count), True
            parts.append(Part(first, view, on_cpu, self._on_device(task, group, count)))
            first += count
        return parts

    def _on_device(self, task: Task, group: CacheGroup, count: int) -> KvView | None:
        """Where a graph writes the new K and V of rows that the CPU attends."""
        if group != "cpu_attend" or not self.kept.is_replayed(task):
            return None
        return self.caches.home_on_device(task.j, task.k, group, count)

    def staged(self, task: Task, state: BatchState) -> dict[CacheGroup, KvView]:
        """The disk rows of this gpu batch in the host buffer of its cache slot."""
        return self.caches.in_staging(task.j, task.slots.cache, state.cache_rows)

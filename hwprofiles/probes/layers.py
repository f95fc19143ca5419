"""Layers: what a decoder layer costs beside its matrix products and its cache.

Three figures. Host time of a small layer, by its number of operations: Python, dispatch and launches, which is all
that a layer of one token and a few weights costs. The rate of elementwise operations whose results are new tensors,
as transformers' layers write them. The rate of a prompt's attention to itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from hwprofiles.budget import DTYPES, Slices
from hwprofiles.points import Dtype, LayerPoint, Rate
from hwprofiles.probes.buffers import fill_random
from hwprofiles.probes.compute import TORCH_DTYPE, synchronize
from hwprofiles.probes.cores import cores, on_core
from hwprofiles.probes.timing import Rounds, mean_rate_of, measured_rate, rounds_of
from hwprofiles.probes.visits import Visits
from hwprofiles.units import MIB

_SMALL = 64
_NUM_LAYERS = 10
FAMILIES: dict[str, tuple[int, dict[str, object]]] = {
    "opt": (13, {"ffn_dim": 2 * _SMALL, "word_embed_proj_dim": _SMALL}),
    "qwen3": (54, {"intermediate_size": 2 * _SMALL, "num_key_value_heads": 4, "head_dim": 16}),
}
"""A family of few operations a layer, and one of many; views left out. tests/hwprofiles/test_layers.py counts them."""
LAYER_POINTS = len(FAMILIES)
ELEMENTWISE_BYTES, SMALL_ELEMENTWISE_BYTES = 8 * MIB, 2 * MIB
"""Of a new tensor: one that is a mapping of its own, whose pages are new each time, and one that is not."""
_CORE_BYTES = 16 * MIB
"""More cache than a core has for itself."""
_TURNS = 4
"""How often a visit measures each family: a virtual machine's core is slower for a while now and then."""
_TENSORS = 8
"""In turn: as many as a layer has in use."""
_PROMPT, _HEADS, _HEAD_SIZE = 256, 16, 64
_PROMPT_ROWS = {"cpu": 4, "cuda": 64}


def sweep_all(num_bytes: int) -> Callable[[], object]:
    """Reads so much memory with all cores, as where they compute and weights go through their caches."""
    return torch.ones(num_bytes // torch.float32.itemsize).sum


def sweep_core() -> Callable[[], object]:
    """Reads what takes the place of all that this core's own cache held: beside a GPU one thread is at work."""
    return np.ones(_CORE_BYTES // np.dtype(np.float32).itemsize, dtype=np.float32).sum


class LayerTimes:
    """Host seconds of one token's pass through a small layer, with caches that other data has gone through: `sweep`.

    In a run it is the layer before, and what the engine does. A loop that has the caches to itself takes from 0.25 to
    0.45 ms on hosts of one kind on which runs are equally fast; cold caches make these hosts alike. A CPU computes the
    layer in that time; a GPU is asked for it, and nothing waits for its kernels.

    Beside a GPU one core at a time does this, and each in turn (`cores.py`). A core may be slow for a minute: so it was
    beside the first GPU of a host and no longer beside its second one. Visits some time apart tell how fast it is on
    average.
    """

    def __init__(self, device: torch.device, sweep: Callable[[], object], visits: Visits) -> None:
        self._device, self._visits = device, visits
        self._cores = cores() if device.type == "cuda" else (None,) * _TURNS
        self._models = {family: decoder(family, _NUM_LAYERS, device) for family in FAMILIES}
        self._seconds = {family: _timed_layers(model, sweep) for family, model in self._models.items()}

    def visit(self) -> None:
        """Measure each family, in turns: on a GPU's host from each core, else from wherever this thread is."""
        ids = torch.ones(1, 1, dtype=torch.long, device=self._device)
        slices_s = {
            family: self._visits.slice_s(f"{self._device} layer of {operations} operations")
            for family, (operations, _) in FAMILIES.items()
        }
        found: dict[str, list[float]] = {family: [] for family in FAMILIES}
        with torch.inference_mode():
            for model in self._models.values():
                model(input_ids=ids, use_cache=False)  # the first pass chooses kernels
            for core, (family, model) in product(self._cores, self._models.items()):
                seconds = self._seconds[family]
                seconds.clear()
                with on_core(core):
                    deadline = time.perf_counter() + slices_s[family] / len(self._cores)
                    while not seconds or time.perf_counter() < deadline:
                        model(input_ids=ids, use_cache=False)
                found[family].append(statistics.median(seconds))
        synchronize(self._device)
        for family, of_turns in found.items():
            self._visits.add(family, mean_rate_of(of_turns))

    def points(self) -> tuple[LayerPoint, ...]:
        """Half-way between the visits."""
        return tuple(
            LayerPoint(operations=operations, seconds=self._visits.mean(family), is_cold=True)
            for family, (operations, _) in FAMILIES.items()
        )


def _timed_layers(model: nn.Module, sweep: Callable[[], object]) -> list[float]:
    """Seconds of each layer from now on, with a sweep before it."""
    found: list[float] = []
    started = 0.0

    def begin(*_: object) -> None:
        nonlocal started
        sweep()
        started = time.perf_counter()

    def end(*_: object) -> None:
        found.append(time.perf_counter() - started)

    for layers in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for layer in layers:
            layer.register_forward_pre_hook(begin)
            layer.register_forward_hook(end)
    return found


def elementwise_rate(device: torch.device, tensor_bytes: int, slice_s: float) -> Rate:
    """Bytes read and written per second by sums whose results are new tensors; half of them bf16, half float32."""
    tensors = [
        fill_random(torch.empty(tensor_bytes // dtype.itemsize, dtype=dtype, device=device))
        for dtype in (torch.float32, torch.bfloat16) * (_TENSORS // 2)
    ]

    def add() -> None:
        for tensor in tensors:
            torch.add(tensor, tensor)

    moved = 3 * sum(tensor.nbytes for tensor in tensors)
    return measured_rate(rounds_of(add, lambda: synchronize(device)), moved, slice_s)


def prompt_attention_rates(device: torch.device, slice_s: Slices) -> dict[Dtype, Rate]:
    """FLOP per second of causal attention of prompts, the half that is masked left out."""
    rates: dict[Dtype, Rate] = {}
    rows = _PROMPT_ROWS[device.type]
    for dtype in DTYPES:
        flops = 2.0 * rows * _HEADS * _PROMPT**2 * _HEAD_SIZE
        run = _prompts(rows, dtype, device)
        rates[dtype] = measured_rate(run, flops, slice_s(f"{device} prompt attention {dtype}"))
    return rates


def _prompts(rows: int, dtype: Dtype, device: torch.device) -> Rounds:
    shape = rows, _HEADS, _PROMPT, _HEAD_SIZE
    heads = fill_random(torch.empty(shape, dtype=TORCH_DTYPE[dtype], device=device))
    return rounds_of(
        lambda: scaled_dot_product_attention(heads, heads, heads, is_causal=True), lambda: synchronize(device)
    )


def decoder(family: str, num_layers: int, device: torch.device) -> nn.Module:
    """A small random model in bfloat16."""
    sizes = {"hidden_size": _SMALL, "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64}
    config = AutoConfig.for_model(family, num_hidden_layers=num_layers, **sizes, **FAMILIES[family][1])
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device).eval()
    return model

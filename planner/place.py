"""Place: a policy's fractions realised as whole tensors and whole sequences, spread evenly.

What does not come out even is carried to the next layer or gpu batch, so that the whole is within one tensor,
or one sequence, of the request. The faster tiers get at most what was requested; the slowest one used takes
the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planner.layout import DTYPE_BYTES, tensor_bytes
from planner.model import ModelSpec
from planner.placement import TIER_LETTER, CacheRows, Placement, TierRows
from planner.policy import TIERS, Policy, Split, Tier

_LETTER: dict[Tier, str] = {tier: letter for letter, tier in TIER_LETTER.items()}
_ROUNDING = 1e-6
"""Of one unit: shares are solved for in floating point, and 0.25 of 4 rows is 1 row."""


def place(model: ModelSpec, policy: Policy, compute_tier: Tier) -> Placement:
    """The placement nearest to the policy's splits."""
    sizes = _layer_sizes(model, policy)
    letters = _place_weights(sizes, policy.weights)
    cache = _place_rows(policy.cache, policy.gpu_batch_size, policy.num_gpu_batches)
    hidden = _place_rows(policy.activations, policy.gpu_batch_size, policy.num_gpu_batches)
    return Placement(
        weight_tiers=letters,
        cache_rows=tuple(_attend(cache, policy.cpu_attention if compute_tier == "gpu" else 0.0)),
        activation_rows=tuple(TierRows(gpu=gpu, cpu=cpu, disk=disk) for gpu, cpu, disk in hidden),
        weights=_weight_split(letters, sizes),
        cache=_row_split(cache),
        activations=_row_split(hidden),
    )


def _layer_sizes(model: ModelSpec, policy: Policy) -> list[list[int]]:
    """Bytes of each layer's tensors; layers of one kind share a list."""
    element = DTYPE_BYTES[model.dtype]
    by_kind = {
        id(layer): [tensor_bytes(tensor, policy.weight_bits, element) for tensor in layer.tensors]
        for layer in {id(layer): layer for layer in model.layers}.values()
    }
    return [by_kind[id(layer)] for layer in model.layers]


def _place_weights(sizes: Sequence[Sequence[int]], split: Split) -> tuple[str, ...]:
    """One letter a tensor: each layer's largest tensors first, to the fastest tier whose request has room."""
    carry = dict.fromkeys(TIERS, 0.0)
    shares, rest = dict(split.items()), _slowest(split)
    if shares[rest] == 1:
        return tuple(_LETTER[rest] * len(nbytes) for nbytes in sizes)
    faster, placed = [tier for tier in TIERS if tier != rest and shares[tier]], []
    largest_first = {id(nbytes): _largest_first(nbytes) for nbytes in sizes}
    for nbytes in sizes:
        total = sum(nbytes)
        for tier in TIERS:
            carry[tier] += shares[tier] * total
        letters = [""] * len(nbytes)
        for index in largest_first[id(nbytes)]:
            least = nbytes[index] * (1 - _ROUNDING)
            for tier in faster:
                if carry[tier] >= least:
                    break
            else:
                tier = rest
            carry[tier] -= nbytes[index]
            letters[index] = _LETTER[tier]
        placed.append("".join(letters))
    return tuple(placed)


def _largest_first(nbytes: Sequence[int]) -> list[int]:
    return sorted(range(len(nbytes)), key=nbytes.__getitem__, reverse=True)


def _slowest(split: Split) -> Tier:
    """The slowest tier with a share; it takes what rounding leaves over."""
    return [tier for tier, share in split.items() if share > _ROUNDING][-1]


def _place_rows(split: Split, batch: int, num_batches: int) -> list[tuple[int, int, int]]:
    """Rows of each gpu batch on gpu, cpu and disk."""
    carry, rest = dict.fromkeys(TIERS, 0.0), _slowest(split)
    placed = []
    for _ in range(num_batches):
        counts = dict.fromkeys(TIERS, 0)
        for tier, share in split.items():
            carry[tier] += share * batch
            if tier != rest:
                counts[tier] = min(batch - sum(counts.values()), int(carry[tier] + _ROUNDING))
        counts[rest] = batch - sum(counts.values())
        for tier, count in counts.items():
            carry[tier] -= count
        placed.append((counts["gpu"], counts["cpu"], counts["disk"]))
    return placed


def _attend(rows: Sequence[tuple[int, int, int]], share: float) -> list[CacheRows]:
    """Split the rows off the GPU into loaded ones and ones the CPU attends, cpu rows first."""
    placed, seen, attended = [], 0, 0
    for gpu, cpu, disk in rows:
        seen += cpu + disk
        wanted = min(cpu + disk, max(0, int(seen * share + 0.5) - attended))
        attended += wanted
        on_cpu = min(cpu, wanted)
        on_disk = wanted - on_cpu
        placed.append(
            CacheRows(gpu=gpu, cpu=cpu - on_cpu, cpu_attend=on_cpu, disk=disk - on_disk, disk_attend=on_disk)
        )
    return placed


def _weight_split(letters: Sequence[str], sizes: Sequence[Sequence[int]]) -> Split:
    held = dict.fromkeys(TIERS, 0)
    alike = Counter((layer, id(nbytes)) for layer, nbytes in zip(letters, sizes, strict=True))
    kinds = {id(nbytes): nbytes for nbytes in sizes}
    for (layer, kind), count in alike.items():
        for letter, size in zip(layer, kinds[kind], strict=True):
            held[TIER_LETTER[letter]] += size * count
    total = sum(held.values())
    return Split(gpu=held["gpu"] / total, cpu=held["cpu"] / total, disk=held["disk"] / total)


def _row_split(rows: Sequence[tuple[int, int, int]]) -> Split:
    gpu, cpu, disk = (sum(counts[i] for counts in rows) for i in range(3))
    total = gpu + cpu + disk
    return Split(gpu=gpu / total, cpu=cpu / total, disk=disk / total)

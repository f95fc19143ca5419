"""Arenas: exact sizes, aligned pieces, clean release."""

from __future__ import annotations

import gc

import pytest
import torch

from executor.arena import Arena
from executor.memory import resident_bytes
from hwprofiles.errors import UserError
from hwprofiles.units import MIB

CPU = torch.device("cpu")


def test_pieces_are_aligned_and_apart() -> None:
    """Pieces start at their alignment, do not overlap, and begin as zeros."""
    arena = Arena(3 * 4096, CPU, register=False)
    first, second, third = arena.take(10), arena.take(10), arena.take(100, align=256)
    assert [piece.data_ptr() - arena.tensor.data_ptr() for piece in (first, second, third)] == [0, 4096, 4352]
    assert arena.tensor.data_ptr() % 4096 == 0
    assert int(arena.tensor.sum()) == 0
    second.fill_(7)
    assert int(first.sum()) == 0
    assert int(third.sum()) == 0


def test_more_than_its_size_is_our_bug() -> None:
    """An arena never hands out more than the ledger said."""
    arena = Arena(4096, CPU, register=False)
    arena.take(4000)
    with pytest.raises(AssertionError, match="no 97 B left"):
        arena.take(97, align=1)


def test_empty_arena() -> None:
    """A plan without bytes of a purpose still has its arena."""
    arena = Arena(0, CPU, register=True)
    assert arena.take(0).numel() == 0
    arena.close()


def test_resident_size_is_exact() -> None:
    """Every page is there after construction, and no more than asked, although huge pages are used."""
    gc.collect()  # so that nothing of earlier tests goes meanwhile
    before = resident_bytes()
    arena = Arena(65 * MIB + 1, CPU, register=False)
    grown = resident_bytes() - before
    arena.close()
    assert 65 * MIB <= grown <= 68 * MIB


def test_close_returns_memory_when_the_last_view_is_gone() -> None:
    """A view that outlives the arena stays valid; without views the memory is back at once."""
    gc.collect()  # so that nothing of earlier tests goes meanwhile
    before = resident_bytes()
    arena = Arena(64 * MIB, CPU, register=False)
    view = arena.take(64 * MIB)
    arena.close()
    view.fill_(3)
    assert int(view[-1]) == 3
    assert resident_bytes() - before >= 64 * MIB
    del view
    assert resident_bytes() - before < 8 * MIB


def test_impossible_size_is_a_user_error() -> None:
    """More than the address space gives is refused in one line with the remedy."""
    with pytest.raises(UserError, match=r"cannot allocate 4096\.0 TiB on the cpu tier .*--cpu-mem"):
        Arena(2**52, CPU, register=False)


@pytest.mark.gpu
def test_registered_arena_is_pinned_and_copies() -> None:
    """A registered arena counts as pinned at its odd size, copies both ways, and can be unregistered."""
    device = torch.device("cuda", 0)
    host = Arena(5 * MIB + 4096, CPU, register=True)
    assert host.tensor.is_pinned()
    remote = Arena(5 * MIB + 4096, device, register=False)
    host.tensor.copy_(torch.arange(host.nbytes, dtype=torch.int32).to(torch.uint8))
    expected = host.tensor.clone()
    remote.tensor.copy_(host.tensor, non_blocking=True)
    torch.cuda.synchronize()
    host.tensor.zero_()
    host.tensor.copy_(remote.tensor, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(host.tensor, expected)
    view = host.tensor[:10]
    host.close()
    assert not view.is_pinned()
    remote.close()


@pytest.mark.gpu
def test_too_large_for_the_gpu_is_a_user_error() -> None:
    """CUDA's out-of-memory becomes one line with the remedy."""
    _, total = torch.cuda.mem_get_info(0)
    with pytest.raises(UserError, match=r"on the gpu tier .*--gpu-mem"):
        Arena(total * 2, torch.device("cuda", 0), register=False)

"""Copies within host memory by the thread that calls."""

from __future__ import annotations

import pytest
import torch

from executor.transfer import copy_on_host


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_a_copy_has_the_same_bytes(dtype: torch.dtype) -> None:
    """NaN's included, in a dtype that numpy does not know too; what lies beside the target stays."""
    source = torch.randint(0, 256, (4096 * dtype.itemsize,), dtype=torch.uint8).view(dtype).view(4, 16, 64)
    target = torch.zeros(6, 16, 64, dtype=dtype)
    copy_on_host(target[1:5], source)
    assert torch.equal(target[1:5].view(torch.uint8), source.view(torch.uint8))
    assert not target[0].any()
    assert not target[5].any()

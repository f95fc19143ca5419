"""The probes of layers: what they count, and that all of them answer."""

from __future__ import annotations

import pytest
import torch

from hwprofiles.budget import Pace
from hwprofiles.probes.layers import FAMILIES, LAYER_POINTS, decoder, layer_points, prompt_attention_rates
from tests.dispatched import Seen

CPU = torch.device("cpu")


def operations(family: str, num_layers: int) -> int:
    """Of one token's pass."""
    model = decoder(family, num_layers, CPU)
    with torch.no_grad(), Seen() as counted:
        model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False)
    return counted.operations


@pytest.mark.parametrize("family", FAMILIES)
def test_the_operations_are_those_of_the_layers(family: str) -> None:
    """The numbers beside the families are what the dispatcher counts."""
    assert operations(family, 3) - operations(family, 2) == FAMILIES[family][0]


def test_more_operations_take_longer() -> None:
    """A point for each family, and a rate of attention for each dtype."""
    pace = Pace(2.0, LAYER_POINTS + 3, lambda *_: None)
    few, many = sorted(layer_points(CPU, pace), key=lambda point: point.operations)
    assert many.seconds.median > few.seconds.median > 0
    assert set(prompt_attention_rates(CPU, pace)) == {"float32", "float16", "bfloat16"}

"""The demo's model: it deepens without forgetting, and learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_model import Settings, build_model, deepen, encode_all, train, train_tokenizer

SOURCES = ["def f(x):\n    return x + 1\n\n\n" * 40, "for i in range(10):\n    print(i)\n" * 40]
SETTINGS = Settings(hidden_size=64, num_heads=2, ffn_dim=64, vocab_size=300, context=16, batch_size=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_deepened_model_computes_the_same() -> None:
    """Added layers change nothing until they are trained."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(SOURCES, SETTINGS)
    shallow, deep = (build_model(tokenizer, SETTINGS, num_layers) for num_layers in (2, 6))
    tokens = torch.arange(16)[None]
    with torch.inference_mode():
        torch.testing.assert_close(deepen(shallow, deep)(tokens).logits, shallow(tokens).logits)


def test_training_ends_with_all_layers_and_a_lower_loss() -> None:
    """Some steps on two short programs, the first with few layers."""
    settings = replace(SETTINGS, first_layers=1, num_layers=2, layer_steps=60)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(SOURCES, settings)
    tokens = encode_all(tokenizer, SOURCES)
    model = build_model(tokenizer, settings, settings.first_layers)
    batch = tokens[None, :16]
    before = float(model(batch, labels=batch).loss.detach())
    trained = train(model, tokenizer, tokens, settings)
    assert trained.config.num_hidden_layers == 2
    assert float(trained(batch, labels=batch).loss.detach()) < before / 2


def test_every_setting_is_part_of_the_digest() -> None:
    """A checkpoint made with other settings is made again."""
    assert Settings().digest() == Settings().digest()
    assert Settings().digest() != replace(Settings(), seed=1).digest()

"""Small tokenizers, trained here in milliseconds."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "def main(args): return sum(args) / len(args)",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.",
]
_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny products are faster so: torch's threads wait for one another at the end of each."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE with <s>, </s> and <|end|> as special tokens; it adds none of them by itself."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(_LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<s>"
    )


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> PreTrainedTokenizerBase:
    """As Llama 2's: a word's space belongs to its token and is dropped at the start of a decoded text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], show_progress=False)
    backend.train_from_iterator(_LINES * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture
def chat_tokenizer(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> PreTrainedTokenizerBase:
    """The byte-level tokenizer with a chat template that refuses the role "tool"."""
    monkeypatch.setattr(tokenizer, "chat_template", _CHAT_TEMPLATE)
    return tokenizer

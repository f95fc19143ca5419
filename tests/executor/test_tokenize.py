"""Finding a checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from executor.tokenize import load_tokenizer
from hwprofiles.errors import UserError


def test_a_saved_tokenizer_is_found(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """What was saved beside a checkpoint encodes as before."""
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode("lazy dog") == tokenizer.encode("lazy dog")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": '{"model_type": "opt"}'},
        {"config.json": '{"model_type": "llama"}'},
        {"config.json": '{"model_type": "opt"}', "tokenizer.json": "{"},
        {"config.json": '{"model_type": "opt"}', "tokenizer.json": "{}"},
    ],
)
def test_no_usable_tokenizer(tmp_path: Path, files: dict[str, str]) -> None:
    """A checkpoint without tokenizer files, or with broken ones, is told how to get them."""
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"tokenizer.*; add its tokenizer files") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_such_directory(tmp_path: Path) -> None:
    """A path that is not a directory is never looked up elsewhere."""
    with pytest.raises(UserError, match="no such directory"):
        load_tokenizer(tmp_path / "none")

"""Tokenizer: a prompt's tokens as the executor will count them, by the tokenizers library alone.

The executor asks transformers; this follows what transformers 5 makes of a checkpoint's files (TokenizersBackend in
tokenization_utils_tokenizers.py), so that a plan can be made where neither torch nor transformers is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from hwprofiles.errors import UserError
from planner.chat_template import NO_TEMPLATE, ChatTemplate
from planner.prompt_line import Prompt
from planner.tokenizer_classes import TokenizerClass, class_of
from planner.tokenizer_files import REMEDY, Special, TokenizerFiles, read_tokenizer_files


class PromptTokenizer:
    """A checkpoint's tokenizer and chat template."""

    def __init__(self, model_dir: Path) -> None:
        """A UserError where the checkpoint's tokenizer cannot be read, or not be followed exactly."""
        if not model_dir.is_dir():
            raise UserError(f"{model_dir}: no such directory; give a checkpoint directory as --model-path")
        files = read_tokenizer_files(model_dir)
        kind = class_of(files)
        named: Special = {**(kind.names if kind else {}), **files.named}
        self._tokenizer = _build(files, kind, named)
        self._num_tokens = self._tokenizer.get_vocab_size(with_added_tokens=True)
        texts = {name: str(token) for name, token in named.items() if token is not None}
        self._template = ChatTemplate(files.chat_template, texts) if files.chat_template is not None else None

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt; text gets the special tokens, ids are only checked, messages are rendered."""
        if isinstance(prompt, str):
            return self._encode_text(prompt, add_special_tokens=True)
        if isinstance(prompt, list):
            if self._template is None:
                raise UserError(NO_TEMPLATE)
            return self._encode_text(self._template.render(prompt), add_special_tokens=False)
        check_ids(prompt, self._num_tokens)
        return prompt

    def _encode_text(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


def check_ids(prompt: tuple[int, ...], num_tokens: int) -> None:
    """A UserError for a token id that the tokenizer does not have."""
    for token_id in prompt:
        if not 0 <= token_id < num_tokens:
            raise UserError(f"prompt holds token id {token_id}, the tokenizer has 0 to {num_tokens - 1}")


def _build(files: TokenizerFiles, kind: TokenizerClass | None, named: Special) -> Tokenizer:
    try:
        whole = Tokenizer.from_str(json.dumps(files.pipeline))
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{files.directory}: tokenizer.json cannot be used ({reason}); {REMEDY}") from None
    tokenizer = whole
    if kind:
        tokenizer = kind.build(files, str(named["unk_token"]))
        if whole.post_processor is not None and not kind.own_post_processor:
            tokenizer.post_processor = whole.post_processor
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = bool(files.settings.get("split_special_tokens", False))
    _add_tokens(tokenizer, files, named)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, files: TokenizerFiles, named: Special) -> None:
    """Those listed beside the vocabulary, then special ones that are not among them."""
    tokens = [token for _, token in sorted(files.added.items())]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known |= {token.content for token in tokens}
    for token in (*named.values(), *files.extra):
        if token is not None and str(token) not in known:
            tokens.append(token if isinstance(token, AddedToken) else AddedToken(token, special=True))
            known.add(str(token))
    names = {str(token) for token in named.values() if token is not None}
    for token in tokens:
        token.special = token.special or token.content in names
    if tokens:
        tokenizer.add_tokens(tokens)

"""The checkpoint's own tokenizer: found, and applied to a prompt or to chat messages."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hwprofiles.errors import UserError
from planner.chat_template import NO_TEMPLATE, REFUSALS, refused
from planner.prompt_line import Messages, Prompt
from planner.tokenizer import check_ids


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint; a UserError when there is none that works."""
    remedy = "add its tokenizer files (tokenizer.json, tokenizer_config.json) or leave out --input"
    if not model_dir.is_dir():
        raise UserError(f"{model_dir}: no such directory; give a checkpoint directory as --model-path")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    except (
        Exception
    ) as error:  # transformers and tokenizers raise OSError, ValueError, KeyError and bare Exception
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{model_dir}: no usable tokenizer ({reason}); {remedy}") from None
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # transformers 5 makes up an empty one
        raise UserError(f"{model_dir}: no tokenizer files; {remedy}")
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt; text gets the tokenizer's special tokens, ids are only checked.

    Messages go through the tokenizer's chat template, ending where the assistant's turn begins.
    """
    if isinstance(prompt, str):
        return _encode_text(tokenizer, prompt, add_special_tokens=True)
    if isinstance(prompt, list):
        return _encode_text(tokenizer, _render_chat(tokenizer, prompt), add_special_tokens=False)
    check_ids(prompt, len(tokenizer))
    return prompt


def _encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool
) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))


def _render_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    if tokenizer.chat_template is None:
        raise UserError(NO_TEMPLATE)
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except REFUSALS as error:
        raise refused(error) from None
    return str(text)
